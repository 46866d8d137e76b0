"""The graph as a whole: it loads, lightly; a change of its shape shows in review; nothing automatic can deploy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from assets.definitions import ASSETS, defs

SNAPSHOT = Path(__file__).with_name("definitions_snapshot.json")
REPOSITORY = Path(__file__).resolve().parents[2]


def shape() -> dict:
    """{asset: deps, group, partitions, checks, owners, pool, code version} and {automation: what it selects}."""
    graph = defs.resolve_asset_graph()
    assets = {}
    for key in sorted(graph.get_all_asset_keys(), key=str):
        node = graph.get(key)
        assets[key.to_user_string()] = {
            "deps": sorted(parent.to_user_string() for parent in node.parent_keys),
            "group": node.group_name,
            "partitions": getattr(node.partitions_def, "name", None) or type(node.partitions_def).__name__ if node.partitions_def else None,
            "checks": sorted(check.name + (" (blocks)" if graph.get_check_spec(check).blocking else "") for check in node.check_keys),
            "owners": sorted(node.owners),
            "pools": sorted(node.pools or []),
            "code_version": node.code_version,
        }  # fmt: skip
    jobs = {name: sorted(key.to_user_string() for key in selected(name)) for name in JOB_NAMES}
    return {"assets": assets, "jobs": jobs}


def selected(job: str) -> set[dg.AssetKey]:
    return set(defs.resolve_job_def(job).asset_layer.selected_asset_keys)


JOB_NAMES = ["observe", "ingest", "curate", "episodes", "recipe", "deploy", "scrub_store"]


def test_definitions_agree_with_the_snapshot() -> None:
    # Regenerate on purpose with: UPDATE_SNAPSHOT=1 pytest tests/assets/test_definitions.py
    if os.environ.get("UPDATE_SNAPSHOT"):
        SNAPSHOT.write_text(json.dumps(shape(), indent=1, sort_keys=True) + "\n")
    assert shape() == json.loads(SNAPSHOT.read_text())


def test_definitions_are_loadable() -> None:
    dg.Definitions.validate_loadable(defs)


def test_every_asset_says_what_it_is_who_owns_it_and_how_it_is_versioned() -> None:
    graph = defs.resolve_asset_graph()
    assert len(ASSETS) == 19
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description and len(node.description) > 60, key
        if node.is_materializable:
            assert node.owners and node.kinds and node.code_version and node.check_keys, key


def test_loading_definitions_imports_no_heavy_library_and_is_quick() -> None:
    script = (
        "import sys, time; import assets.definitions; heavy = {'torch', 'faiss', 'mujoco', 'deepspeed', 'cv2', 'matplotlib', 'sklearn'}; "
        "print(sorted(heavy & set(sys.modules)), time.process_time())"
    )
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    heavy, _, seconds = done.stdout.strip().rpartition(" ")
    assert heavy == "[]"
    # The bound on CPU time, which does not depend on how busy the machine is.
    assert float(seconds) <= 3.0


def test_no_schedule_or_sensor_can_reach_robot_deployment() -> None:
    deployment = dg.AssetKey("robot_deployment")
    repository = defs.get_repository_def()
    automations = [*repository.schedule_defs, *repository.sensor_defs]
    assert len(automations) >= 4
    for automation in automations:
        for target in automation.targets if isinstance(automation, dg.SensorDefinition) else [automation.target]:
            assert deployment not in selected(target.job_name), automation.name
    assert deployment in selected("deploy")
    assert all(deployment not in selected(job) for job in JOB_NAMES if job != "deploy")
    graph = defs.resolve_asset_graph()
    assert all(graph.get(key).automation_condition is None for key in graph.get_all_asset_keys())


def test_everything_automatic_is_off_until_switched_on() -> None:
    repository = defs.get_repository_def()
    assert all(schedule.default_status == dg.DefaultScheduleStatus.STOPPED for schedule in repository.schedule_defs)
    assert all(sensor.default_status == dg.DefaultSensorStatus.STOPPED for sensor in repository.sensor_defs)
    assert all(sensor.minimum_interval_seconds >= 60 for sensor in repository.sensor_defs)
    assert all(schedule.execution_timezone for schedule in repository.schedule_defs)


def test_no_asset_has_a_retry_policy_because_dagster_applies_it_to_a_cancel_too() -> None:
    for asset in ASSETS:
        if isinstance(asset, dg.AssetsDefinition) and asset.check_specs:
            assert asset.op.retry_policy is None, asset.key


@pytest.mark.parametrize("asset", ["pretrained_encoder", "cooled_encoder", "world_model"])
def test_training_assets_take_a_slot_of_the_trainer_pool(asset: str) -> None:
    assert defs.resolve_asset_graph().get(dg.AssetKey(asset)).pools == {"trainer"}
