"""The training set as WebDataset shards."""

import json
from typing import Any

import dagster as dg

from assets.bodies import Plan, Task, blocking, carry_out
from assets.curation import curated_clips, distinct_clips
from assets.resources import StoreResource
from pipelines.checks import Check
from pipelines.store import MANIFEST, Artefact, Store

CODE_VERSION = "2"


class ShardsConfig(dg.Config):
    """`short_side` of the stored clips in px and `frame_rate` in 1/s (None: the source's); smaller and slower sources stay as
    they are. `copy_streams` keeps packets that are in training form already. A tar of which less than the share
    `compact_below` is in use is written anew without the rest. `rewrite` gives up the shards that are there.
    """

    short_side: int = 112
    frame_rate: float | None = None
    copy_streams: bool = True
    compact_below: float = 0.5
    workers: int = 2
    rewrite: bool = False


def plan_training_shards(store: Store, config: ShardsConfig) -> Plan:
    from pipelines.shards.form import ShardConfig
    from pipelines.tombstones import read_tombstones

    inputs = [store.current("distinct_clips"), store.current("curated_clips")]
    settings = ShardConfig(**config.model_dump(exclude={"workers", "rewrite"}))
    tombstones = read_tombstones(store.root)
    wanted = {**settings.model_dump(), **({"tombstones": tombstones.digest} if tombstones else {})}
    base = shards_to_keep(store, inputs, wanted, settings.clip_form, config.rewrite)

    def build(task: Task) -> dict[str, Any]:
        from pipelines.shards import writer

        return writer.build_shards(
            task.folder, inputs[0].path, inputs[1].path, config=settings, base=store.root / base["base_path"] if base["base_path"] else None,
            tombstones=tombstones, workers=config.workers, progress=task.progress, work=task.work_folder,
        )  # fmt: skip

    def check(artefact: Artefact) -> dict[str, Check]:
        from pipelines.shards import writer

        return writer.check_shards(artefact.path, tombstones=read_tombstones(store.root))

    return Plan(
        "training_shards", build, check, inputs=inputs, config={**wanted, **base}, highlights=("clips", "shards", "clips_cut", "failed"),
        code_version=CODE_VERSION, in_parts=True, looks_outside=True,
    )  # fmt: skip


def shards_to_keep(store: Store, inputs: list[Artefact], wanted: dict[str, Any], clip_form: dict[str, Any], rewrite: bool) -> dict[str, Any]:
    """Digest and path of the training_shards whose tars the next one may take over: the current one's, when its clips have
    the wanted form; and how often the shards have been given up by `rewrite`, each time a request of its own.

    When the current one was made from just these inputs and options, it is what it was made from itself: asking twice for
    the same shards is one request.
    """
    nothing = {"base": None, "base_path": None, "rewrites": 0}
    current = store.latest("training_shards")
    if current is None or json.loads((current.path / MANIFEST).read_text())["code_version"] != CODE_VERSION:
        return nothing
    if rewrite:
        return {**nothing, "rewrites": current.config["rewrites"] + 1}
    made = {name: value for name, value in current.config.items() if name not in nothing}
    if current.inputs == {item.key: item.digest for item in inputs} and made == wanted:
        return {name: current.config[name] for name in nothing}
    if any(current.config[name] != value for name, value in clip_form.items()):
        return nothing
    return {**nothing, "base": current.digest, "base_path": str(current.path.relative_to(store.root))}


@dg.asset(
    deps=[distinct_clips, curated_clips], group_name="curation", owners=["team:data"], kinds={"webdataset", "parquet"},
    code_version=CODE_VERSION, check_specs=blocking("training_shards", "not_empty", "bytes_agree", "clips_were_cut", "nothing_taken_down"),
)  # fmt: skip
def training_shards(context: dg.AssetExecutionContext, config: ShardsConfig, storage: StoreResource) -> dg.MaterializeResult:
    """The selected clips as WebDataset tars that any reader of that format opens, with a Parquet index.

    The index carries each clip's weight and its seconds in the source video: what a checkpoint was trained on is read here.
    """
    return carry_out(context, storage, lambda store: plan_training_shards(store, config))
