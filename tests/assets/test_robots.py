"""A robot that stands among people is real, whatever a file in the store says."""

import json
from pathlib import Path

from assets.partitions import REAL_ROBOTS
from assets.planning import deployment_target
from pipelines.store import Store


def store_with(tmp_path: Path, robots: dict) -> Store:
    store = Store.open(tmp_path / "store")
    episodes = store.produce("robot_episodes", lambda folder: (folder / "x").touch() or {}, partition="simulated")
    store.accept(episodes, {})
    (store.root / "targets").mkdir()
    (store.root / "targets" / "robots.json").write_text(json.dumps(robots))
    return store


def test_real_robot_cannot_be_declared_simulated_by_the_store(tmp_path: Path) -> None:
    store = store_with(tmp_path, {"franka": {"driver": "simulated", "real": False}})
    for robot in REAL_ROBOTS:
        assert deployment_target(store, robot).real


def test_real_robot_without_a_record_is_replayed_dry(tmp_path: Path) -> None:
    target = deployment_target(store_with(tmp_path, {}), "franka")
    assert target.real and target.driver == "replay" and target.episodes is not None


def test_simulated_robot_is_the_simulated_one_even_if_a_file_names_it(tmp_path: Path) -> None:
    target = deployment_target(store_with(tmp_path, {"sim": {"driver": "replay", "real": True}}), "sim")
    assert target.driver == "simulated" and not target.real
