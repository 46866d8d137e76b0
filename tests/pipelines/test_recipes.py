"""Recipes are typed and hashed: a typing mistake is an error, and a part's digest moves only with that part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic
import pytest

from models.assembly import empty_module
from models.encoder import VideoEncoder
from models.predictor import MaskedPredictor
from models.released import RELEASED
from pipelines.errors import InputError
from pipelines.pretraining.cost import networks
from pipelines.recipes import MIXTURES, Phase, Recipe, for_gpus, load_mixture, load_recipe, recipe_names
from pipelines.shards.mixture import open_mixture
from pipelines.training.schedule import learning_rate

PAPER = {"vitl16": "vitl", "vith16": "vith", "vitg16": "vitg", "vitg16-384": "vitg-384"}
PAPER_2_1 = {"vitl16-2.1": "vjepa2_1_vitl_dist_vitG_384", "vitg16-2.1": "vjepa2_1_vitg_384", "vitgigantic16-2.1": "vjepa2_1_vitG_384"}
"""Presets with papers' numbers, and the released file of the same size."""


def parameters(module: Any, config: Any) -> int:
    return sum(value.numel() for value in empty_module(module, config).parameters())


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


@pytest.mark.parametrize("name", recipe_names())
def test_cooldown_sees_more_frames_and_never_fewer_pixels(name: str) -> None:
    first, second = load_recipe(name).pretraining.pretrain, load_recipe(name).pretraining.cooldown
    assert second.frames > first.frames and second.height >= first.height and second.width >= first.width
    assert (first.fps, first.stride) == (second.fps, second.stride)


@pytest.mark.parametrize("name", recipe_names())
def test_cooldown_goes_on_where_the_learning_rate_was_and_ends_near_zero(name: str) -> None:
    first, second = load_recipe(name).pretraining.pretrain, load_recipe(name).pretraining.cooldown
    assert learning_rate(second.learning_rate, 0, second.steps) == pytest.approx(learning_rate(first.learning_rate, first.steps, first.steps))
    assert learning_rate(second.learning_rate, second.steps, second.steps) < 0.05 * first.learning_rate.peak


@pytest.mark.parametrize(("name", "file"), [*PAPER.items(), *PAPER_2_1.items()])
def test_preset_builds_the_encoder_that_was_released(name: str, file: str) -> None:
    recipe = load_recipe(name)
    released = next(part for part in RELEASED[file].parts.values() if part.kind == "encoder")
    encoder, _ = networks(recipe, recipe.pretraining.cooldown)
    assert encoder == released.config
    assert parameters(VideoEncoder, encoder) == released.parameters
    # The first phase has the same weights at another size.
    assert parameters(VideoEncoder, networks(recipe, recipe.pretraining.pretrain)[0]) == released.parameters


@pytest.mark.parametrize(("name", "file"), [*PAPER.items(), *PAPER_2_1.items()])
def test_preset_builds_the_predictor_that_was_released_unless_that_one_was_distilled(name: str, file: str) -> None:
    recipe = load_recipe(name)
    released = RELEASED[file].parts["predictor"]
    _, predictor = networks(recipe, recipe.pretraining.cooldown)
    assert (predictor == released.config) == (parameters(MaskedPredictor, predictor) == released.parameters) == ("dist" not in file)
    assert predictor.depth == (24 if name in PAPER_2_1 else 12)


@pytest.mark.parametrize("name", [*PAPER, *PAPER_2_1])
def test_global_batch_of_every_paper_preset_is_shared_out_whole(name: str) -> None:
    plan = load_recipe(name).pretraining
    for phase in (plan.pretrain, plan.cooldown):
        assert phase.global_batch % (plan.ranks * phase.accumulation) == 0
        assert phase.keep_every is not None and phase.keep_every % phase.checkpoint_every == 0


@pytest.mark.parametrize("name", sorted(path.stem for path in MIXTURES.glob("*.yaml")))
def test_shares_of_a_papers_mixture_are_whole(name: str) -> None:
    assert sum(source["weight"] for source in load_mixture(name)) == pytest.approx(1.0)


@pytest.mark.parametrize("name", [*PAPER, *PAPER_2_1])
def test_mixture_without_shards_is_refused_with_the_source_and_the_key_to_set(name: str) -> None:
    """The papers' presets name sets that nobody but their owner has: using one as it ships must say what to write where."""
    first = next(source for source in load_recipe(name).pretraining.mixture if not source.shards)
    with pytest.raises(InputError, match=rf"the mixture's source {first.name} has no shards.*shards of {first.name} in the recipe's mixture"):
        open_mixture([first], None)


def test_a_phase_samples_by_time_or_by_frames() -> None:
    phase = load_recipe("nano").pretraining.pretrain.model_dump()
    assert Phase.model_validate({**phase, "fps": None, "stride": 4}).stride == 4
    for fps, stride in ((None, None), (4.0, 4)):
        with pytest.raises(ValueError, match="fps or stride"):
            Phase.model_validate({**phase, "fps": fps, "stride": stride})


def test_frames_and_sides_that_make_no_whole_tokens_are_refused_by_name() -> None:
    content = load_recipe("smoke").resolved()
    content["pretraining"]["cooldown"]["frames"] = 5
    content["probes"]["height"] = 40
    with pytest.raises(pydantic.ValidationError, match=r"pretraining\.cooldown\.frames 5 by 2, probes\.height 40 by 16"):
        Recipe.model_validate(content)


def test_probes_look_at_a_size_of_their_own_or_at_post_trainings() -> None:
    smoke = load_recipe("smoke")
    assert smoke.probe_size == (smoke.posttraining.height, smoke.posttraining.width) and load_recipe("vitg16-384").probe_size == (384, 384)


def test_a_recipe_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(InputError, match="cannot be used"):
        load_recipe(tmp_path / "other.yaml")


def test_fewer_gpus_than_ranks_take_more_micro_batches_of_as_many_clips() -> None:
    recipe = load_recipe("vitl16")
    for gpus, ranks in ((0, 8), (1, 1), (5, 4), (7, 4), (8, 8), (16, 8)):
        here = for_gpus(recipe, gpus).pretraining
        assert here.ranks == ranks, gpus
        for before, after in ((recipe.pretraining.pretrain, here.pretrain), (recipe.pretraining.cooldown, here.cooldown)):
            assert after.accumulation * ranks == before.accumulation * 8
        assert here.deciding("pretrain", "cooldown") == recipe.pretraining.deciding("pretrain", "cooldown")

