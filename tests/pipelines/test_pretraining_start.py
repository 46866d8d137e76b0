"""What a training may go on from: each part to its network, every tensor used, every difference named."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.huggingface import VJEPA2, to_huggingface
from models.predictor import MaskedPredictor
from models.weights import save_module, to_official
from pipelines.errors import InputError, TrainingError
from pipelines.pretraining.run import build_student
from pipelines.pretraining.start import (
    UNTOLD,
    artefact_of,
    load_start,
    networks_of_record,
    open_start,
    start_digest,
    start_record,
    starting_recipe,
)
from pipelines.recipes import Recipe, load_recipe
from pipelines.store import Store


def recipe_with(part: str = "predictor", **changes: Any) -> Recipe:
    resolved = load_recipe("smoke").resolved()
    resolved[part].update(changes)
    return Recipe.model_validate(resolved)


def networks_of(recipe: Recipe) -> dict[str, nn.Module]:
    """A student with its predictor, and a target that differs from it."""
    student = build_student(recipe, recipe.pretraining.pretrain)
    target = copy.deepcopy(student.encoder)
    with torch.no_grad():
        for value in target.parameters():
            value.add_(1.0)
    return {"encoder": student.encoder, "target_encoder": target, "predictor": student.predictor}


def official(path: Path, networks: dict[str, nn.Module]) -> Path:
    """A training checkpoint as upstream's trainer leaves it, wrappers, optimizer and unused position table included."""
    content: dict[str, Any] = {part: {f"module.backbone.{name}": value for name, value in to_official(module).items()} for part, module in networks.items()}
    torch.save({**content, "opt": {"state": {}, "param_groups": []}, "epoch": 7, "loss": 0.5}, path)
    return path


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("smoke")


@pytest.fixture(scope="module")
def networks(recipe: Recipe) -> dict[str, nn.Module]:
    return networks_of(recipe)


@pytest.fixture(scope="module")
def checkpoint(networks: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return official(tmp_path_factory.mktemp("released") / "tiny.pt", networks)


def same(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_student_gets_the_encoder_and_target_its_average(checkpoint: Path, networks: dict[str, nn.Module], recipe: Recipe, tmp_path: Path) -> None:
    start = open_start(checkpoint, recipe)
    found = start.networks()
    assert all(same(found[part], networks[part]) for part in networks) and not same(found["encoder"], found["target_encoder"])
    weights = load_start(checkpoint, recipe, start.digest, tmp_path, first=True)
    assert set(weights.student) == {f"encoder.{name}" for name in networks["encoder"].state_dict()} | {f"predictor.{name}" for name in networks["predictor"].state_dict()}
    assert all(torch.equal(value, networks["target_encoder"].state_dict()[name]) for name, value in weights.target.items())
    assert "student from encoder, target from target_encoder" in weights.line and UNTOLD in weights.line
    record = start_record(tmp_path, None)
    assert record is not None and record["digest"] == start.digest and record["training_data"] == UNTOLD and record["licence"] == "not told by these files"


def test_one_encoder_goes_to_both(networks: dict[str, nn.Module], recipe: Recipe, tmp_path: Path) -> None:
    to_huggingface(VJEPA2(networks["encoder"], networks["predictor"]), tmp_path / "hf", image_size=32)
    (tmp_path / "hf" / "README.md").write_text("---\nlicense: mit\ntags:\n- video\n---\n# A model\n")
    for name in ("target_encoder", "predictor"):
        save_module(networks[name], tmp_path / "ours", name)
    theirs = open_start(tmp_path / "hf", recipe)
    assert same(theirs.networks()["encoder"], networks["encoder"]) and same(theirs.networks()["target_encoder"], networks["encoder"])
    assert theirs.record["licence"] == "mit"
    with pytest.raises(InputError, match="one file of a folder"):  # its configuration would be missing from the digest
        open_start(tmp_path / "hf" / "model.safetensors", recipe)
    ours = open_start(tmp_path / "ours", recipe).networks()
    assert same(ours["encoder"], networks["target_encoder"]) and same(ours["predictor"], networks["predictor"])


def test_every_difference_is_named_with_what_to_write(tmp_path: Path) -> None:
    released = recipe_with(num_mask_tokens=10, depth=2)
    path = official(tmp_path / "ten.pt", networks_of(released))
    with pytest.raises(InputError) as told:
        open_start(path, load_recipe("smoke"))
    words = str(told.value)
    assert "predictor.num_mask_tokens 2" in told.value.expected and "predictor.num_mask_tokens 10" in told.value.found
    assert "set predictor.depth: 2, predictor.num_mask_tokens: 10 in the recipe" in words and "nothing was loaded" in words
    open_start(path, released)
    with pytest.raises(InputError, match=r"encoder\.depth: 2"):
        open_start(path, recipe_with("encoder", depth=3))


def test_what_shapes_do_not_tell_is_not_taken_on_trust(checkpoint: Path, tmp_path: Path) -> None:
    """Rotary layout and, where a configuration lies beside the weights, heads."""
    with pytest.raises(InputError, match="rope_layout"):
        open_start(checkpoint, recipe_with("encoder", rope_layout="interleaved"))
    for name, module in networks_of(load_recipe("smoke")).items():
        save_module(module, tmp_path, name)
    with pytest.raises(InputError, match=r"encoder\.num_heads: 2"):
        open_start(tmp_path, recipe_with("encoder", num_heads=4))


def test_encoder_without_its_predictor_is_refused(networks: dict[str, nn.Module], recipe: Recipe, tmp_path: Path) -> None:
    path = official(tmp_path / "bare.pt", {"encoder": networks["encoder"]})
    with pytest.raises(InputError, match="no masked predictor") as told:
        open_start(path, recipe)
    assert "whole checkpoint" in told.value.remedy


def test_predictor_of_a_teachers_features_is_refused(networks: dict[str, nn.Module], recipe: Recipe, tmp_path: Path) -> None:
    config = networks["predictor"].config
    distilled = MaskedPredictor(type(config)(**{**config.to_dict(), "out_embed_dim": 48}))
    path = official(tmp_path / "distilled.pt", {**networks, "predictor": distilled})
    with pytest.raises(InputError, match="teacher of width 48"):
        open_start(path, recipe)


@pytest.mark.parametrize(("part", "change", "words"), [
    ("predictor", lambda tensors: tensors.pop("module.backbone.predictor_norm.bias"), "missing"),
    ("target_encoder", lambda tensors: tensors.update({"module.backbone.odd": torch.zeros(1)}), "unexpected"),
    ("encoder", lambda tensors: tensors["module.backbone.norm.bias"].fill_(float("nan")), "not finite"),
])  # fmt: skip
def test_a_tensor_too_few_too_many_or_not_finite_is_refused(checkpoint: Path, recipe: Recipe, tmp_path: Path, part: str, change: Any, words: str) -> None:
    content = torch.load(checkpoint, weights_only=True)
    change(content[part])
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(InputError, match=words):
        open_start(tmp_path / "odd.pt", recipe)


def test_digest_is_that_of_the_content(checkpoint: Path, networks: dict[str, nn.Module], tmp_path: Path) -> None:
    assert start_digest(checkpoint) == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    (tmp_path / "elsewhere.pt").write_bytes(checkpoint.read_bytes())
    assert start_digest(tmp_path / "elsewhere.pt") == start_digest(checkpoint)
    to_huggingface(VJEPA2(networks["encoder"], networks["predictor"]), tmp_path / "hf", image_size=32)
    before = start_digest(tmp_path / "hf")
    (tmp_path / "hf" / "README.md").write_text("words")
    assert start_digest(tmp_path / "hf") == before
    (tmp_path / "hf" / "config.json").write_text((tmp_path / "hf" / "config.json").read_text() + " ")
    assert start_digest(tmp_path / "hf") != before
    with pytest.raises(InputError, match="cannot be read"):
        start_digest(tmp_path / "nothing.pt")


def test_a_file_exchanged_since_it_was_asked_for_is_refused(checkpoint: Path, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="another checkpoint"):
        load_start(checkpoint, recipe, "0" * 64, tmp_path, first=True)
    load_start(checkpoint, recipe, "0" * 64, tmp_path, first=False)  # one rank looks for all


def test_an_artefact_of_the_store_is_told_by_its_own_lineage(networks: dict[str, nn.Module], recipe: Recipe, tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")

    def build(folder: Path) -> dict[str, Any]:
        for name, module in networks.items():
            save_module(module, folder, name)
        return {}

    made = store.produce("cooled_encoder", build, partition="tiny")
    found = artefact_of(made.path, store)
    assert found is not None and found.digest == made.digest == start_digest(made.path)
    assert open_start(made.path, recipe).record["training_data"] == f"told by the lineage of cooled_encoder[tiny] {made.digest}"
    assert artefact_of(tmp_path, store) is None and artefact_of(made.path, Store.open(tmp_path / "other")) is None


def test_a_recipe_that_leaves_its_start_open_must_be_given_one(checkpoint: Path, recipe: Recipe) -> None:
    assert starting_recipe(recipe) is recipe
    opened = load_recipe("adapt-vitl16")
    with pytest.raises(InputError, match="none was given"):
        starting_recipe(opened)
    assert starting_recipe(opened, checkpoint).pretraining.start_from == str(checkpoint)
    for path, words in (("tiny.pt", "a relative path"), ("/nowhere/tiny.pt", "nothing")):
        with pytest.raises(InputError, match=words):
            starting_recipe(opened, path)


def test_probing_says_when_the_starting_weights_are_gone(checkpoint: Path, recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "tiny.pt").write_bytes(checkpoint.read_bytes())
    record = open_start(tmp_path / "tiny.pt", recipe).record
    assert set(networks_of_record(record, recipe)) == {"encoder", "target_encoder", "predictor"}
    (tmp_path / "tiny.pt").unlink()
    with pytest.raises(TrainingError, match="bring the checkpoint back"):
        networks_of_record(record, recipe)


def test_the_phase_after_keeps_the_record_of_the_phase_before(tmp_path: Path) -> None:
    assert start_record(tmp_path, None) is None and start_record(tmp_path, tmp_path) is None
    (tmp_path / "lineage.json").write_text(json.dumps({"start_from": {"name": "tiny.pt"}}))
    assert start_record(tmp_path / "work", tmp_path) == {"name": "tiny.pt"}


def test_the_recipe_for_released_weights_has_the_shapes_of_the_release() -> None:
    from models.released import RELEASED

    shapes = load_recipe("adapt-vitl16")
    for part, name in ((shapes.encoder, "encoder"), (shapes.predictor, "predictor")):
        config = RELEASED["vitl"].parts[name].config
        assert {field: getattr(config, field) for field, _ in part} == dict(part)
