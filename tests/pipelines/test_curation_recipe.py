"""Curation recipes: what ships loads, carries the published numbers, and mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipelines.curation.recipe import PARTS, load_curation, recipe_files, stage_options
from pipelines.curation.selection import SelectionConfig
from pipelines.errors import InputError
from pipelines.recipes import PRESETS


@pytest.mark.parametrize("name", sorted(recipe_files()))
def test_every_curation_preset_loads_and_its_options_fit_their_stages(name: str) -> None:
    load_curation(name)
    for part in PARTS:
        stage_options(name, part)
    stage_options(name, "selection").insist()


def test_vjepa2_carries_the_published_numbers() -> None:
    scenes, embedding, clusters, selection = (stage_options("vjepa2", part) for part in ("scenes", "embedding", "clusters", "selection"))
    assert scenes.min_clip_s == 4.0 and embedding.frames == 1 and "dinov2" in embedding.encoder and clusters.levels == (1_500_000,)
    assert (selection.mode, selection.support, selection.smoothing) == ("retrieval", 1, 1)
    assert selection.repeat_cap is None and selection.uniform_mix == 0.0 and selection.target_max is None and selection.cluster_max is None
    sets = yaml.safe_load((PRESETS / "targets" / "vjepa2.yaml").read_text())["sets"]
    assert {name: found["weight"] for name, found in sets.items()} == {"kinetics710": 0.70, "ssv2": 0.125, "coin": 0.125, "epic_kitchens": 0.05}


def test_nano_selects_as_the_stage_does_without_a_recipe() -> None:
    assert stage_options("nano", "selection") == SelectionConfig()


def test_single_values_replace_those_of_the_recipe() -> None:
    assert stage_options("vjepa2", "selection", {"repeat_cap": 8.0}) == stage_options("vjepa2", "selection").model_copy(update={"repeat_cap": 8.0})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("selction: {support: 1}", "selction"),
        ("selection: {repeat_capp: 2}", "repeat_capp"),
        ("selection: {mode: randomly}", "retrieval"),
        ("scenes: [1, 2]", "scenes"),
        ("selection: {support: [", "cannot be used"),
    ],
)
def test_mistakes_in_a_recipe_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_curation(path)


def test_unknown_recipe_lists_the_known_ones_with_those_of_the_persons_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text("selection: {support: 4}")
    monkeypatch.setenv("TUBELET_CURATION", str(tmp_path))
    assert stage_options("mine", "selection").support == 4
    with pytest.raises(InputError, match="one of nano, vjepa2, mine, or a YAML file"):
        load_curation("theirs")
