"""The sensors: new files become one batch with its run, growing files wait, failures and lost runs are written down."""

import json
import os
import time
from pathlib import Path

import dagster as dg
import pytest

from assets.automation import arriving_videos, failed_runs, lost_runs
from assets.definitions import defs
from assets.resources import StoreResource
from pipelines.sources import registry
from pipelines.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    folder = tmp_path / "videos"
    folder.mkdir()
    put(folder / "one.mp4", age_s=3600)
    opened = Store.open(tmp_path / "store")
    registry.register_source(opened, "own", folder)
    return opened


def put(path: Path, age_s: float) -> None:
    path.write_bytes(b"not looked into by a sensor")
    os.utime(path, (time.time() - age_s,) * 2)


def tick(store: Store, instance: dg.DagsterInstance) -> dg.SensorResult | dg.SkipReason:
    context = dg.build_sensor_context(instance=instance, definitions=defs)
    return arriving_videos(context, storage=StoreResource(root=str(store.root)))


def test_arriving_files_become_one_partition_and_one_run(store: Store) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        result = tick(store, instance)
        assert isinstance(result, dg.SensorResult)
        assert [request.partition_key for request in result.run_requests or []] == ["own-0001"]
        assert [request.run_key for request in result.run_requests or []] == ["own-0001"]
        assert [list(request.partition_keys) for request in result.dynamic_partitions_requests or []] == [["own-0001"]]


def test_known_files_start_nothing(store: Store) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        registry.new_batches(store)
        instance.add_dynamic_partitions("ingest_batch", ["own-0001"])
        assert isinstance(tick(store, instance), dg.SkipReason)


def test_file_that_is_still_being_written_waits(store: Store) -> None:
    put(Path(registry.list_sources(store)[0].path) / "two.mp4", age_s=1)
    with dg.DagsterInstance.ephemeral() as instance:
        result = tick(store, instance)
        assert isinstance(result, dg.SkipReason) and "two.mp4" in str(result.skip_message)
        assert registry.list_batches(store) == []


def test_failed_run_leaves_a_line_that_names_it(store: Store) -> None:
    @dg.op
    def breaks() -> None:
        raise ValueError("broken on purpose")

    @dg.job
    def breaking() -> None:
        breaks()

    with dg.DagsterInstance.ephemeral() as instance:
        result = breaking.execute_in_process(instance=instance, raise_on_error=False)
        context = dg.build_run_status_sensor_context(
            "failed_runs", result.get_run_failure_event(), instance, result.dagster_run
        ).for_run_failure()
        failed_runs(context, storage=StoreResource(root=str(store.root)))
    (line,) = (store.root / "logs" / "failures.jsonl").read_text().splitlines()
    assert json.loads(line)["job"] == "breaking" and json.loads(line)["run_id"] == result.run_id


def test_lost_runs_sensor_says_what_it_did_on_a_quiet_instance(store: Store) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_sensor_context(instance=instance)
        result = lost_runs(context, storage=StoreResource(root=str(store.root)))
        assert isinstance(result, dg.SkipReason) and "ended 0 lost runs" in str(result.skip_message)
