"""Curation recipes: what ships loads, carries the published numbers, and mistakes are named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

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
    assert scenes.min_clip_s == 4.0 and embedding.frames == 1 and "dinov2" in embedding.encoder
    assert clusters.sizes(316_000_000)[0] == pytest.approx(1_500_000, rel=0.01) and clusters.rounds == (0,)  # and fewer of fewer scenes
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


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        ("scenes", {"max_clip_s": 0}, "max_clip_s: input should be greater than 0"),
        ("scenes", {"min_clip_s": -1}, "min_clip_s: input should be greater than 0"),
        ("scenes", {"min_clip_s": 8}, "max_clip_s 6 should be at least min_clip_s 8"),
        ("embedding", {"batch": 0}, "batch: input should be greater than 0"),
        ("embedding", {"frames": 0}, "frames.*: input should be greater than 0"),
        ("embedding", {"fps": 0}, "fps: input should be greater than 0"),
        ("duplicates", {"search": {"neighbours": 0}}, "search.neighbours: input should be greater than 0"),
        ("duplicates", {"search": {"probes": 0}}, "search.probes: input should be greater than 0"),
        ("duplicates", {"search": {"threads": 0}}, "search.threads: input should be greater than 0"),
        ("duplicates", {"search": {"rhythm": -1}}, "search.rhythm: input should be greater than or equal to 0"),
        ("clusters", {"clips_per_cluster": 0}, "clips_per_cluster: input should be greater than 0"),
        ("clusters", {"max_clusters": 0}, "max_clusters: input should be greater than 0"),
        ("clusters", {"coarse_clusters": 0}, "coarse_clusters: input should be greater than 0"),
        ("clusters", {"levels": [0]}, "levels.0: input should be greater than 0"),
        ("clusters", {"levels": [4, 8]}, "levels: no level should be larger than the one before it"),
        ("clusters", {"rounds": [-1]}, "rounds.0: input should be greater than or equal to 0"),
        ("drift", {"splits": 0}, "splits: input should be greater than 0"),
        ("drift", {"splits": 99}, "splits 99 give no p below p_below 0.01: splits should be at least 100"),
        ("drift", {"refit_growth": 1}, "refit_growth: input should be greater than 1"),
    ],
)
def test_values_that_no_stage_can_work_with_are_refused_with_their_name_and_bound(part: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"the options of {part} cannot be used") as told:
        stage_options("nano", part, options)
    assert re.search(message, told.value.found), told.value.found


def test_the_least_number_of_splits_can_still_flag_something() -> None:
    assert stage_options("nano", "drift", {"splits": 100}).splits == 100
