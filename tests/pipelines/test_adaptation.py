"""Going on from a checkpoint: the program begins at its weights, and everything made from it says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from models.weights import to_official
from pipelines.pretraining import run
from pipelines.pretraining.spec import read_spec, write_spec
from pipelines.pretraining.start import UNTOLD, start_digest
from pipelines.pretraining.task import Pretraining
from pipelines.recipes import Recipe, load_recipe
from pipelines.training.launcher import EXIT_INPUT

pytestmark = pytest.mark.usefixtures("own_process_state")


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    other = load_recipe("smoke").model_copy(update={"seed": 7})
    student, average = (run.build_student(other.model_copy(update={"seed": seed}), other.pretraining.pretrain) for seed in (7, 8))
    return {"encoder": student.encoder, "target_encoder": average.encoder, "predictor": student.predictor}


@pytest.fixture(scope="module")
def checkpoint(networks: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("released") / "tiny.pt"
    torch.save({part: {f"module.backbone.{name}": value for name, value in to_official(module).items()} for part, module in networks.items()}, path)
    return path


def recipe_from(checkpoint: Path | str, **pretraining: Any) -> Recipe:
    resolved = load_recipe("smoke").resolved()
    resolved["pretraining"] |= {"start_from": str(checkpoint), **pretraining}
    return Recipe.model_validate(resolved)


def spec_of(work: Path, recipe: Recipe, shards: Path, phase: Any = "pretrain", **options: Any) -> Path:
    path = recipe.pretraining.start_from
    digest = start_digest(path) if path and phase == "pretrain" else ""
    return write_spec(work, recipe, phase, shards, work / "store", start_digest=digest, **options)


def trained(work: Path, recipe: Recipe, shards: Path, **options: Any) -> Path:
    assert run.main(["--spec", str(spec_of(work, recipe, shards, **options))]) == 0
    return work / "result"


def test_training_begins_at_the_given_weights_and_everything_after_it_says_so(
    checkpoint: Path, networks: dict[str, nn.Module], made_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: dict[str, dict[str, torch.Tensor]] = {}
    losses_before = Pretraining.losses

    def losses(self: Pretraining, at: int, *others: Any) -> Any:
        if at == 0 and not begun:
            for part, module in (("student", self.engine.module), ("target", self.target)):
                begun[part] = {name: value.clone() for name, value in module.state_dict().items()}
        return losses_before(self, at, *others)

    monkeypatch.setattr(Pretraining, "losses", losses)
    first = trained(tmp_path / "first", recipe_from(checkpoint), made_shards)
    for part in ("encoder", "predictor"):
        assert all(torch.equal(value, begun["student"][f"{part}.{name}"]) for name, value in networks[part].state_dict().items())
    assert all(torch.equal(value, begun["target"][name]) for name, value in networks["target_encoder"].state_dict().items())
    assert int(load_file(first / "optimizer.safetensors")["step"]) == 6  # its own steps alone
    second = trained(tmp_path / "second", recipe_from(checkpoint), made_shards, phase="cooldown", init_from=first)
    for result in (first, second):
        told = json.loads((result / "lineage.json").read_text())["start_from"]
        assert (told["name"], told["digest"], told["training_data"]) == ("tiny.pt", start_digest(checkpoint), UNTOLD)
        assert told["parts"] == {"encoder": "encoder", "target_encoder": "target_encoder", "predictor": "predictor"}


def test_the_content_of_the_checkpoint_makes_the_training_and_not_its_place(checkpoint: Path, made_shards: Path, tmp_path: Path) -> None:
    def identity(path: Path | None) -> str:
        recipe = recipe_from(path) if path else load_recipe("smoke")
        return read_spec(spec_of(tmp_path / "work", recipe, made_shards)).identity()

    (tmp_path / "moved.pt").write_bytes(checkpoint.read_bytes())
    content = torch.load(checkpoint, weights_only=True)
    content["predictor"]["module.backbone.predictor_norm.bias"] += 1
    torch.save(content, tmp_path / "other.pt")
    assert identity(checkpoint) == identity(tmp_path / "moved.pt")
    assert len({identity(checkpoint), identity(tmp_path / "other.pt"), identity(None)}) == 3


def test_a_checkpoint_that_does_not_fit_or_was_exchanged_ends_before_the_first_step(checkpoint: Path, made_shards: Path, tmp_path: Path) -> None:
    resolved = recipe_from(checkpoint).resolved()
    resolved["predictor"]["num_mask_tokens"] = 10
    assert run.main(["--spec", str(spec_of(tmp_path / "ten", Recipe.model_validate(resolved), made_shards))]) == EXIT_INPUT
    (tmp_path / "tiny.pt").write_bytes(checkpoint.read_bytes())
    spec = spec_of(tmp_path / "exchanged", recipe_from(tmp_path / "tiny.pt"), made_shards)
    content = torch.load(checkpoint, weights_only=True)
    content["predictor"]["module.backbone.predictor_norm.bias"] += 1
    torch.save(content, tmp_path / "tiny.pt")
    assert run.main(["--spec", str(spec)]) == EXIT_INPUT
    assert run.main(["--spec", str(spec_of(tmp_path / "open", recipe_from(""), made_shards))]) == EXIT_INPUT  # not at random weights
    assert not any((tmp_path / name / "result").exists() for name in ("ten", "exchanged", "open"))
