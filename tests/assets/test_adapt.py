"""`tubelet adapt`: refuses early, asks the graph for the right things, and says what came out."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from assets import adapt
from assets.adapt import (
    AdaptOptions,
    balanced,
    fitting_recipe,
    insist_on_devices,
    insist_on_shares,
    run_adaptation,
    tell_repeats,
    training_configs,
    verdict_lines,
)
from assets.curate import CurateOptions
from assets.evaluation import ProbeConfig, moved, plan_probe_results
from assets.pretraining import PretrainConfig, plan_pretrained_encoder
from assets.shards import ShardsConfig
from models.errors import TubeletError
from models.weights import save_module, to_official
from pipelines.errors import InputError, MissingArtefact
from pipelines.pretraining.run import build_student
from pipelines.pretraining.start import start_digest
from pipelines.recipes import PRESETS, Recipe, load_recipe
from pipelines.store import Artefact, Store


@pytest.fixture
def own_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    content = yaml.safe_load((PRESETS / "smoke.yaml").read_text()) | {"name": "mine"}
    content["pretraining"] |= {"start_from": "", "ranks": 1}
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setenv("TUBELET_RECIPES", str(tmp_path / "recipes"))
    return load_recipe("mine")


@pytest.fixture
def checkpoint(own_recipe: Recipe, tmp_path: Path) -> Path:
    student = build_student(own_recipe, own_recipe.pretraining.pretrain)
    parts = {"encoder": student.encoder, "target_encoder": student.encoder, "predictor": student.predictor}
    torch.save({part: to_official(module) for part, module in parts.items()}, tmp_path / "tiny.pt")
    return tmp_path / "tiny.pt"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store.open(tmp_path / "store")
    accepted(opened, "training_shards", None)
    return opened


def accepted(store: Store, asset: str, partition: str | None, lineage: dict[str, Any] | None = None) -> Artefact:
    def build(folder: Path) -> dict[str, Any]:
        if lineage is not None:
            (folder / "lineage.json").write_text(json.dumps(lineage))
        return {}

    made = store.produce(asset, build, partition=partition)
    store.accept(made, {})
    return made


def test_what_cannot_work_is_refused_before_anything_is_made(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for arguments, words in (
        (("nowhere.pt", "mine"), "does not exist"), ((str(checkpoint), "giant"), "no recipe is called giant"), ((str(checkpoint), "nano"), "random weights"), ((str(checkpoint), "adapt-vitl16"), r"encoder\.embed_dim: 32"),
    ):  # fmt: skip
        with pytest.raises(TubeletError, match=words):
            run_adaptation(AdaptOptions(arguments[0], CurateOptions(tmp_path / "new", tmp_path / "videos"), arguments[1]))
        assert not (tmp_path / "new").exists()


def test_more_ranks_than_cores_are_refused_with_what_to_change(own_recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    insist_on_devices(own_recipe)
    many = own_recipe.model_copy(update={"pretraining": own_recipe.pretraining.model_copy(update={"ranks": 4096})})
    with pytest.raises(InputError, match="accumulation"):
        insist_on_devices(many)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    insist_on_devices(many)


def test_checkpoint_reaches_the_first_phase_and_shards_are_large_enough(checkpoint: Path, tmp_path: Path) -> None:
    recipe = fitting_recipe(AdaptOptions(str(checkpoint), CurateOptions(tmp_path / "store"), "mine"))
    configs = training_configs(recipe)
    first, second, probes = configs["pretrained_encoder"], configs["cooled_encoder"], configs["probe_results"]
    assert isinstance(first, PretrainConfig) and isinstance(second, PretrainConfig)
    assert isinstance(probes, ProbeConfig) and probes.start_from == str(checkpoint)
    assert (first.start_from, second.start_from) == (str(checkpoint), "")
    assert configs["training_shards"] == ShardsConfig(short_side=60)  # 1.25 x 48 px


def test_a_selection_is_balanced_where_nobody_named_targets_or_a_mode() -> None:
    assert balanced(CurateOptions(Path("store"))) == {"selection": {"mode": "balanced"}}
    assert balanced(CurateOptions(Path("store"), options={"selection": {"mode": "uniform"}})) == {"selection": {"mode": "uniform"}}
    assert balanced(CurateOptions(Path("store"), targets="mine")) == {}


def test_too_many_repeats_are_warned_of_with_a_number_of_steps(own_recipe: Recipe, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapt, "SEEN", 2)
    with caplog.at_level(logging.INFO, logger="tubelet.adapt"):
        tell_repeats(own_recipe, 18)  # 6 x 4 and 3 x 4 samples
        assert "seen 2 times" in caplog.text and "copy of the recipe" not in caplog.text
        tell_repeats(own_recipe, 4)
    assert "with 2 steps in the first phase" in caplog.text


def test_identity_holds_the_checkpoints_content_and_leads_on_through_an_own_artefact(own_recipe: Recipe, checkpoint: Path, store: Store, tmp_path: Path) -> None:
    def plan(path: Path | str) -> Any:
        return plan_pretrained_encoder(store, "mine", PretrainConfig(start_from=str(path)))

    (tmp_path / "moved.pt").write_bytes(checkpoint.read_bytes())
    assert plan(checkpoint).identity == plan(tmp_path / "moved.pt").identity
    assert plan(checkpoint).config["start"] == start_digest(checkpoint) and len(plan(checkpoint).inputs) == 1
    (tmp_path / "moved.pt").write_bytes(checkpoint.read_bytes() + b" ")
    assert plan(checkpoint).identity != plan(tmp_path / "moved.pt").identity
    with pytest.raises(InputError, match="none was given"):
        plan("")

    def build(folder: Path) -> dict[str, Any]:
        save_module(build_student(own_recipe, own_recipe.pretraining.pretrain).encoder, folder, "encoder")
        return {}

    own = store.produce("cooled_encoder", build, partition="before")
    for place in (own.path, shutil.copytree(own.path, tmp_path / "a copy elsewhere")):
        assert [item.key for item in plan(place).inputs] == ["training_shards", "cooled_encoder[before]"]


def test_weights_that_were_moved_are_found_where_they_are_named_now(checkpoint: Path, tmp_path: Path) -> None:
    record = {"digest": start_digest(checkpoint), "path": "/gone/tiny.pt"}
    assert moved(record, str(checkpoint)) == {**record, "path": str(checkpoint)}
    (tmp_path / "other.pt").write_bytes(b"other")
    assert moved(record, str(tmp_path / "other.pt")) == moved(record, "") == record and moved(None, str(checkpoint)) is None


def test_a_recipe_does_not_go_on_from_its_own_result(own_recipe: Recipe, store: Store) -> None:
    accepted(store, "cooled_encoder", "mine", {})
    with pytest.raises(InputError, match="itself"):
        fitting_recipe(AdaptOptions("cooled_encoder[mine]", CurateOptions(store.root), "mine"))


def test_a_batch_that_cannot_be_shared_out_is_refused(own_recipe: Recipe) -> None:
    insist_on_shares(own_recipe)
    uneven = own_recipe.model_copy(update={"pretraining": own_recipe.pretraining.model_copy(update={"ranks": 3})})
    with pytest.raises(InputError, match="global_batch as a multiple"):
        insist_on_shares(uneven)


def test_robot_episodes_may_be_missing_for_an_adapted_encoder_alone(own_recipe: Recipe, store: Store) -> None:
    accepted(store, "target_videos", None)
    accepted(store, "cooled_encoder", "mine", {"start_from": {"name": "tiny.pt", "path": "/x/tiny.pt", "digest": "0"}})
    accepted(store, "cooled_encoder", "smoke", {})
    assert [item.asset for item in plan_probe_results(store, "mine", ProbeConfig()).inputs] == ["cooled_encoder", "target_videos"]
    with pytest.raises(MissingArtefact, match="robot_episodes"):
        plan_probe_results(store, "smoke", ProbeConfig())
    accepted(store, "robot_episodes", "simulated")
    assert "robot_episodes" in [item.asset for item in plan_probe_results(store, "mine", ProbeConfig()).inputs]


def test_the_verdict_is_told_with_its_caveat(store: Store) -> None:
    def build(verdict: dict[str, Any] | None, folder: Path) -> dict[str, Any]:
        (folder / "probes.json").write_text(json.dumps({"verdict": verdict}))
        return {}

    found = {"word": "better", "lines": ["better: +3.1 points"], "others": ["no different: +0.1"], "caveat": "no labels"}
    for number, (verdict, lines) in enumerate([(found, ["verdict: better", "better: +3.1 points", "no labels", "no different: +0.1"]), (None, ["not judged: there was nothing to probe both with"])]):
        made = store.produce("probe_results", lambda folder, verdict=verdict: build(verdict, folder), partition="mine", config={"number": number})
        store.accept(made, {})
        assert verdict_lines(store, "mine") == lines
