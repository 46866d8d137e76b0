"""Recipes are typed and hashed: a typing mistake is an error, and a part's digest moves only with that part."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import InputError
from pipelines.recipes import Phase, load_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_every_preset_loads_under_its_own_name(name: str) -> None:
    assert load_recipe(name).name == name


def test_unknown_keys_are_named(tmp_path: Path) -> None:
    text = Path("pipelines/presets/nano.yaml").read_text() if Path("pipelines/presets/nano.yaml").exists() else ""
    path = tmp_path / "mine.yaml"
    path.write_text(text + "\nlearning_rte: 1\n")
    with pytest.raises(InputError, match="learning_rte"):
        load_recipe(path)


def test_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="nano"):
        load_recipe("vit-enormous")


def test_a_planning_change_does_not_retrain_the_encoder() -> None:
    nano = load_recipe("nano")
    other = nano.model_copy(update={"planning": nano.planning.model_copy(update={"episodes": 3})})
    parts = ("seed", "encoder", "predictor", "pretraining")
    assert nano.digest(*parts) == other.digest(*parts)
    assert nano.digest() != other.digest()


def test_cooldown_raises_pixels_and_frames_in_every_preset() -> None:
    for name in recipe_names():
        phases = load_recipe(name).pretraining
        assert phases.cooldown.height > phases.pretrain.height and phases.cooldown.frames > phases.pretrain.frames


def test_a_phase_samples_by_time_or_by_frames() -> None:
    phase = load_recipe("nano").pretraining.pretrain.model_dump()
    assert Phase.model_validate({**phase, "fps": None, "stride": 4}).stride == 4
    for fps, stride in ((None, None), (4.0, 4)):
        with pytest.raises(ValueError, match="fps or stride"):
            Phase.model_validate({**phase, "fps": fps, "stride": stride})
