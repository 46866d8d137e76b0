"""The main job's logic on three small stages: reuse, staleness, failure and order, through real Dagster runs."""

from pathlib import Path

import dagster as dg
import pytest

from assets import bodies
from assets.bodies import Plan, Task, blocking, carry_out
from assets.launchers import TrainLauncher
from assets.partitions import add_keys, ingest_batches, recipes
from assets.reconcile import reconcile_runs
from assets.resources import StoreResource
from assets.runs import Run, RunFailed, Runner, Stage
from assets.sources import VideosConfig, videos
from pipelines.checks import Check
from pipelines.errors import InputError
from pipelines.schemas import QUARANTINE, VIDEOS, table_of, write_table
from pipelines.sources import registry
from pipelines.store import Store

BUILT: list[str] = []


class Numbers(dg.Config):
    value: int = 1
    broken: bool = False


def _plan(name: str, parents: list, partition: str | None, config: Numbers) -> Plan:
    def build(task: Task) -> dict:
        BUILT.append(name if partition is None else f"{name}[{partition}]")
        if config.broken:
            raise InputError("the input is bad", expected="good", found="bad", remedy="mend it")
        (task.folder / "value.txt").write_text(f"{name} {partition} {config.value}")
        task.progress(1, 1)
        return {"value": config.value, "pictures": []}

    def check(artefact) -> dict[str, Check]:
        return {"positive": Check(config.value > 0, "a value above 0", f"value {config.value}", "choose another value")}

    return Plan(name, build, check, inputs=parents, partition=partition, config={"value": config.value})


def plan_raw(store: Store, batch: str, config: Numbers) -> Plan:
    return _plan("raw", [], batch, config)


def plan_merged(store: Store, _partition: str, config: Numbers) -> Plan:
    return _plan("merged", [store.current("raw", batch) for batch in store.partitions("raw")], None, config)


def plan_model(store: Store, recipe: str, config: Numbers) -> Plan:
    return _plan("model", [store.current("merged")], recipe, config)


@dg.asset(partitions_def=ingest_batches, check_specs=blocking("raw", "positive"))
def raw(context: dg.AssetExecutionContext, config: Numbers, storage: StoreResource) -> dg.MaterializeResult:
    return carry_out(context, storage, lambda store: plan_raw(store, context.partition_key, config))


@dg.asset(
    deps=[dg.AssetDep(raw, partition_mapping=dg.AllPartitionMapping())], check_specs=blocking("merged", "positive")
)
def merged(context: dg.AssetExecutionContext, config: Numbers, storage: StoreResource) -> dg.MaterializeResult:
    return carry_out(context, storage, lambda store: plan_merged(store, "", config))


@dg.asset(deps=[merged], partitions_def=recipes, check_specs=blocking("model", "positive"))
def model(context: dg.AssetExecutionContext, config: Numbers, storage: StoreResource) -> dg.MaterializeResult:
    return carry_out(context, storage, lambda store: plan_model(store, context.partition_key, config))


def definitions(root: Path) -> dg.Definitions:
    return dg.Definitions(
        assets=[raw, merged, model],
        jobs=[
            dg.define_asset_job("ingest", ["raw"]),
            dg.define_asset_job("recipe", ["merged", "model"]),
        ],
        resources={"storage": StoreResource(root=str(root)), "trainer": TrainLauncher()},
        executor=dg.in_process_executor,
    )


INGEST = [Run("ingest", key, ["raw"]) for key in ("a-0001", "a-0002")]
RECIPE = Run("recipe", "smoke", ["merged", "model"])


@pytest.fixture
def runner(tmp_path: Path):
    store = Store.open(tmp_path / "store")
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        add_keys(instance, ingest_batches, ["a-0001", "a-0002"])
        BUILT.clear()
        stages = {
            "raw": Stage(plan_raw, Numbers()), "merged": Stage(plan_merged, Numbers()), "model": Stage(plan_model, Numbers()),
        }  # fmt: skip
        yield Runner(store, instance, {}, stages, definitions(store.root))


def test_second_run_with_nothing_changed_builds_nothing_and_starts_no_run(runner: Runner) -> None:
    assert runner.bring_up(INGEST[0]) and runner.bring_up(RECIPE)
    assert BUILT == ["raw[a-0001]", "merged", "model[smoke]"]
    runs_before = len(runner.instance.get_runs())
    assert not runner.bring_up(INGEST[0]) and not runner.bring_up(RECIPE)
    assert len(BUILT) == 3 and len(runner.instance.get_runs()) == runs_before


def test_new_batch_makes_only_itself_and_what_is_built_from_it(runner: Runner) -> None:
    runner.bring_up(INGEST[0])
    runner.bring_up(RECIPE)
    BUILT.clear()
    assert runner.bring_up(INGEST[1])
    assert BUILT == ["raw[a-0002]"]
    assert runner.outstanding(RECIPE) == ["merged", "model"]


def test_changed_config_of_a_late_stage_leaves_early_stages_alone(runner: Runner) -> None:
    runner.bring_up(INGEST[0])
    runner.bring_up(RECIPE)
    runner.configs = {"model": Numbers(value=2)}
    assert runner.outstanding(RECIPE) == ["model"]


def test_artefact_dagster_forgot_is_announced_again_without_being_rebuilt(runner: Runner) -> None:
    runner.bring_up(INGEST[0])
    runner.instance.wipe_assets([dg.AssetKey("raw")])
    assert runner.bring_up(INGEST[0])
    assert BUILT == ["raw[a-0001]"]


def test_failed_check_stops_the_chain_and_says_expected_found_and_remedy(runner: Runner) -> None:
    runner.bring_up(INGEST[0])
    runner.configs = {"merged": Numbers(value=-1)}
    with pytest.raises(RunFailed) as caught:
        runner.bring_up(RECIPE)
    text = str(caught.value)
    assert "a value above 0" in text and "value -1" in text and "choose another value" in text
    assert BUILT == ["raw[a-0001]", "merged"]
    assert not runner.store.partitions("merged") and not runner.up_to_date("merged", "smoke")


def test_failing_stage_ends_the_run_with_its_own_words(runner: Runner) -> None:
    runner.configs = {"raw": Numbers(broken=True)}
    with pytest.raises(RunFailed, match=r"the input is bad \(expected good; found bad\)\. mend it"):
        runner.bring_up(INGEST[0])


def test_event_carries_digest_as_data_version_and_check_result(runner: Runner) -> None:
    runner.bring_up(INGEST[0])
    artefact = runner.store.current("raw", "a-0001")
    event = runner.instance.get_latest_materialization_event(dg.AssetKey("raw"))
    assert event is not None and event.asset_materialization is not None
    assert event.asset_materialization.tags["dagster/data_version"] == artefact.digest
    assert event.asset_materialization.metadata["value"].value == 1


def test_living_run_is_left_alone_by_reconcile(runner: Runner) -> None:
    runner.bring_up(INGEST[0])
    assert reconcile_runs(runner.instance) == []


def test_rejected_artefact_goes_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(tmp_path / "store")
    plan = _plan("raw", [], "a-0001", Numbers())
    plan = Plan("raw", plan.build, plan.check, partition="a-0001", looks_outside=True)
    BUILT.clear()
    with dg.build_asset_context() as context:
        bodies._produce(context, store, plan, None)

        def killed(folder: Path, **_: object) -> None:
            (folder / "MANIFEST.json").unlink()
            raise KeyboardInterrupt

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr("shutil.rmtree", killed)
            bodies._produce(context, store, plan, None)
        store.accept(bodies._produce(context, store, plan, None), {})
        bodies._produce(context, store, plan, None)
    assert len(BUILT) == 2 and store.made("raw", "a-0001")


def test_refused_batch_is_judged_again_but_not_probed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, root = Store.open(tmp_path / "store"), tmp_path / "pool"
    root.mkdir()
    for name in ("film.mp4", "text.mp4", "more.mp4", "last.mp4"):
        (root / name).write_text(name)
    registry.register_source(store, "pool", root)
    opened: list[str] = []

    def build(folder: Path, batch: registry.Batch, **_: object) -> dict:
        opened.append(batch.key)
        films = [{"path": file.path} for file in batch.files if "film" in file.path]
        texts = [{"path": file.path, "code": "not_a_video", "detail": "", "attempts": 1, "poison": False} for file in batch.files if "film" not in file.path]
        write_table(table_of(VIDEOS, films), folder / "videos.parquet", VIDEOS)
        write_table(table_of(QUARANTINE, texts), folder / "quarantine.parquet", QUARANTINE)
        return {"videos": len(films)}

    monkeypatch.setattr("pipelines.video.probe.build_videos", build)
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:

        def make(**config: float) -> bool:
            registry.new_batches(store)
            add_keys(instance, ingest_batches, registry.list_batches(store))
            run_config = dg.RunConfig({"videos": VideosConfig(**config)})
            resources = {"storage": StoreResource(root=str(store.root))}
            return dg.materialize([videos], partition_key="pool-0001", instance=instance, resources=resources, run_config=run_config, raise_on_error=False).success

        assert not make() and not make(timeout_s=120)
        (root / "text.mp4").unlink()
        assert not make()
        (root / "more.mp4").write_text("mended")
        assert make() and store.current("videos", "pool-0001").summary == {"videos": 1}
    assert opened == ["pool-0001"]
