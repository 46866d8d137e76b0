"""Post-training: the official step's numbers, exact resume, honest validation, and an artefact that can be judged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from models.action_predictor import ActionConditionedPredictor, ActionPredictorConfig
from models.encoder import EncoderConfig, VideoEncoder, encode_frames, layer_norm_features
from models.weights import from_official, load_module, read_checkpoint, save_module, state_digest
from pipelines.episodes.episode import POSE_COLUMNS, load_episodes
from pipelines.errors import InputError, TrainingError
from pipelines.posttraining.features import FrameFeatures, common_step, split_episodes
from pipelines.posttraining.objective import one_step_loss, sequence_losses
from pipelines.posttraining.run import Spec, build_world_model, check_world_model, run
from pipelines.posttraining.trainer import Trainer, new_predictor
from pipelines.posttraining.validation import transition_losses, validate
from pipelines.recipes import PosttrainRecipe, Recipe, load_recipe
from pipelines.schemas import EPISODES, STEPS, table_of, write_table
from pipelines.video.encode import write_video

SIDE, EPISODE_COUNT, FRAMES = 32, 8, 6


def write_episodes(folder: Path, step_s: float = 0.5, last_step_s: float | None = None) -> Path:
    """A bright square whose place in the picture is the pose: a world in which actions decide what is seen next."""
    (folder / "videos").mkdir(parents=True)
    random = np.random.default_rng(5)
    rows, steps = [], []
    for index in range(EPISODE_COUNT):
        duration = last_step_s if last_step_s and index == EPISODE_COUNT - 1 else step_s
        places = random.uniform(0.0, 1.0, (FRAMES, 2))
        frames = np.full((FRAMES, SIDE, SIDE, 3), 40, np.uint8)
        for frame, (x, y) in zip(frames, places, strict=True):
            top, left = int(y * (SIDE - 10)), int(x * (SIDE - 10))
            frame[top : top + 10, left : left + 10] = (230, 120, 40)
        name = f"episode-{index}"
        write_video(folder / "videos" / f"{name}.mp4", frames, 1 / duration)
        rows.append({
            "episode_id": name, "source": "made", "steps": FRAMES, "step_s": duration, "video": f"videos/{name}.mp4",
            "sha256": "", "licence": "CC0-1.0",
        })  # fmt: skip
        for step, (x, y) in enumerate(places):
            pose = (0.3 + 0.3 * x, 0.3 * y, 0.2, 0.0, 0.0, 0.0, 0.0)
            steps.append({
                "episode_id": name, "step": step, "t_s": step * duration, "cube_x": 0.5, "cube_y": 0.01 * step,
                **dict(zip(POSE_COLUMNS, pose, strict=True)),
            })  # fmt: skip
    write_table(table_of(EPISODES, rows), folder / "episodes.parquet", EPISODES)
    write_table(table_of(STEPS, steps), folder / "steps.parquet", STEPS)
    return folder


@pytest.fixture(scope="module")
def episodes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_episodes(tmp_path_factory.mktemp("made_episodes") / "episodes")


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made_encoder")
    torch.manual_seed(0)
    encoder = VideoEncoder(EncoderConfig(embed_dim=24, depth=1, num_heads=2, img_size=(SIDE, SIDE), num_frames=4))
    save_module(encoder, folder, "target_encoder")
    return folder


def small_recipe(**changes: object) -> Recipe:
    posttraining = {
        "height": SIDE, "width": SIDE, "predictor_embed_dim": 24, "depth": 1, "num_heads": 2, "residual": True,
        "batch": 4, "steps": 8, "checkpoint_every": 3, "validation_share": 0.3,
        "learning_rate": {"start": 1e-4, "peak": 3e-3, "final": 1e-4, "warmup_steps": 2, "shape": "cosine"}, **changes,
    }  # fmt: skip
    return Recipe.model_validate({**load_recipe("smoke").resolved(), "posttraining": posttraining})


def random_features(episodes: int = 5, frames: int = 5, patches: int = 4, dim: int = 24) -> FrameFeatures:
    generator = torch.Generator().manual_seed(1)
    tokens = layer_norm_features(torch.randn(episodes * frames, patches, dim, generator=generator)).half()
    poses = torch.rand(episodes * frames, 7, generator=generator)
    actions = torch.randn(episodes * frames, 7, generator=generator) * 0.1
    return FrameFeatures(tokens, poses, actions, torch.arange(episodes + 1) * frames)


def make_trainer(kind: str = "muon", **changes: object) -> Trainer:
    recipe: PosttrainRecipe = small_recipe(**changes).posttraining
    encoder = EncoderConfig(embed_dim=24, depth=1, num_heads=2, img_size=(SIDE, SIDE), num_frames=4)
    return Trainer(recipe, random_features(), [0, 1, 2, 3], new_predictor(recipe, encoder, 3), 3, kind)  # type: ignore[arg-type]


# -- the official numbers ------------------------------------------------------------------------------------------------


def test_losses_and_gradients_equal_the_official_training_step() -> None:
    shared = os.environ.get("TUBELET_SHARED")
    if not shared:
        pytest.skip("TUBELET_SHARED is not set")
    golden = Path(shared) / "golden"
    with safe_open(golden / "ac_step.io.safetensors", framework="pt") as file:
        config = json.loads((file.metadata() or {})["config"])
        data = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    encoder = from_official(
        "encoder", read_checkpoint(golden / "ac_step_encoder.weights.safetensors"), EncoderConfig.from_dict(config["encoder"])
    )
    shape = {name: value for name, value in config["predictor"].items()}
    predictor: ActionConditionedPredictor = from_official(
        "action_predictor", read_checkpoint(golden / "ac_predictor.weights.safetensors"), ActionPredictorConfig.from_dict(shape)
    )
    clips = data["clips"]
    with torch.no_grad():
        frames = layer_norm_features(encode_frames(encoder, clips.transpose(1, 2).flatten(0, 1)))
    tokens = frames.unflatten(0, (clips.shape[0], clips.shape[2]))
    torch.testing.assert_close(tokens.flatten(1, 2), data["h"], atol=3e-5, rtol=0)

    forced, rolled = sequence_losses(predictor, tokens, data["actions"], data["states"], config["auto_steps"])
    assert forced.item() == pytest.approx(data["jloss"].item(), rel=1e-6)
    assert rolled.item() == pytest.approx(data["sloss"].item(), rel=1e-6)
    (forced + rolled).backward()
    for name, value in data.items():
        if name.startswith("grad."):
            gradient = predictor.get_parameter(name.removeprefix("grad.")).grad
            assert gradient is not None
            assert (gradient - value).norm() <= 5e-5 * value.norm(), name
    norm = torch.stack([p.grad.norm() for p in predictor.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(data["grad_norm_predictor"].item(), rel=1e-5)


def test_one_step_loss_is_teacher_forcing_of_one_transition() -> None:
    trainer = make_trainer()
    data = trainer.features
    rows = torch.tensor([0, 6, 12])
    one = one_step_loss(
        trainer.predictor, data.tokens[rows].float(), data.actions[rows], data.poses[rows], data.tokens[rows + 1].float()
    )
    pair = torch.stack([rows, rows + 1], dim=1)
    forced, rolled = sequence_losses(
        trainer.predictor, data.tokens[pair].float(), data.actions[rows, None], data.poses[pair], rollout=1
    )
    assert one.item() == pytest.approx(forced.item(), rel=1e-6)
    assert rolled.item() == pytest.approx(forced.item(), rel=1e-6)


# -- training ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_resumed_training_is_the_uninterrupted_one(tmp_path: Path, kind: str) -> None:
    whole = make_trainer(kind)
    reference = [whole.update() for _ in range(8)]
    first = make_trainer(kind)
    seen = [first.update() for _ in range(3)]
    first.save(tmp_path)
    second = make_trainer(kind)
    assert second.resume(tmp_path)
    seen += [second.update() for _ in range(5)]
    assert seen == reference
    assert state_digest(second.predictor) == state_digest(whole.predictor)


def test_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    trainer = make_trainer()
    for _ in range(2):
        trainer.update()
        trainer.save(tmp_path)
    newest = max(tmp_path.glob("step-*")) / "predictor.safetensors"
    newest.write_bytes(newest.read_bytes()[:-20])
    again = make_trainer()
    assert again.resume(tmp_path)
    assert again.step == 1


def test_first_updates_are_single_transitions_and_the_rest_rolls_out() -> None:
    trainer = make_trainer()
    kinds = ["rollout_loss" in trainer.update() for _ in range(8)]
    assert kinds == [False] * 6 + [True] * 2


def test_divergence_ends_the_training_with_a_remedy() -> None:
    trainer = make_trainer()
    with torch.no_grad():
        trainer.predictor.predictor_proj.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="diverged at step 1"):
        trainer.update()


# -- episodes ------------------------------------------------------------------------------------------------------------


def test_new_episodes_never_move_old_ones_across_the_split() -> None:
    ids = [f"episode {index}" for index in range(60)]
    before = {ids[index] for index in split_episodes(ids[:40], 0.2)[1]}
    after = {ids[index] for index in split_episodes(ids, 0.2)[1]}
    assert before == after & set(ids[:40])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_both_sides_of_the_split_hold_an_episode(share: float) -> None:
    training, validation = split_episodes(["a", "b", "c"], share)
    assert training and validation and sorted(training + validation) == [0, 1, 2]


def test_windows_never_span_two_episodes() -> None:
    features = random_features(episodes=3, frames=4)
    windows = features.windows([0, 2], 3)
    assert windows.tolist() == [0, 1, 8, 9]
    assert features.episode_of(windows).tolist() == [0, 0, 2, 2]


def test_episodes_with_another_time_step_are_refused(tmp_path: Path) -> None:
    folder = write_episodes(tmp_path / "episodes", step_s=0.5, last_step_s=0.1)
    with pytest.raises(InputError, match="different time steps"):
        common_step(load_episodes(folder))


# -- validation ----------------------------------------------------------------------------------------------------------


def test_predictor_that_cannot_see_actions_has_ratio_one() -> None:
    trainer = make_trainer()
    with torch.no_grad():
        trainer.predictor.action_encoder.weight.zero_()
    table = validate(trainer.predictor, trainer.features, [3, 4], seed=0)
    for base in ("zero", "shuffled"):
        assert table[f"true_over_{base}"]["value"] == pytest.approx(1.0, abs=1e-6)
    assert table["transitions"] == 8 and table["episodes"] == 2


def test_no_transition_keeps_its_own_action_when_shuffled() -> None:
    trainer = make_trainer()
    rows = trainer.features.windows([0, 1, 2], 2)
    losses = transition_losses(trainer.predictor, trainer.features, rows, seed=1)
    assert (losses["true"] != losses["shuffled"]).all()


# -- process and artefact ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(episodes_folder: Path, encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work folder of both trainings, run to the end."""
    work = tmp_path_factory.mktemp("work")
    for kind in ("trained", "random"):
        spec = Spec(small_recipe(), encoder_folder, kind, episodes_folder, work / kind)
        assert run(spec)
    return work


def test_artefact_holds_both_models_their_losses_and_their_episodes(trained: Path, tmp_path: Path) -> None:
    summary = build_world_model(tmp_path, trained)
    for part in (tmp_path, tmp_path / "control"):
        assert load_module(part, "encoder").config == load_module(tmp_path, "encoder").config
        load_module(part, "predictor")
    assert state_digest(load_module(tmp_path, "encoder")) != state_digest(load_module(tmp_path / "control", "encoder"))
    losses = json.loads((tmp_path / "losses.json").read_text())
    assert set(losses) == {"trained", "random"}
    assert summary["loss_true"] == losses["trained"]["true"]["value"]
    lineage = json.loads((tmp_path / "lineage.json").read_text())
    assert len(lineage["episodes"]["train"]) + len(lineage["episodes"]["validation"]) == EPISODE_COUNT
    assert (tmp_path / "curves.png").stat().st_size < 100_000
    checks = check_world_model(tmp_path)
    assert checks["finite"].passed and "not judged" in checks["uses_actions"].found


def test_blind_predictor_fails_its_check(trained: Path, tmp_path: Path) -> None:
    build_world_model(tmp_path, trained)
    losses = json.loads((tmp_path / "losses.json").read_text())
    losses["trained"]["updates"] = 1000
    losses["trained"]["true_over_zero"]["value"] = 0.97
    (tmp_path / "losses.json").write_text(json.dumps(losses))
    assert not check_world_model(tmp_path)["uses_actions"].passed


def test_interrupted_process_ends_with_the_same_weights(
    trained: Path, episodes_folder: Path, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = Spec(small_recipe(), encoder_folder, "trained", episodes_folder, tmp_path)
    update = Trainer.update

    def interrupted(self: Trainer) -> dict[str, float]:
        if self.step == 5:
            raise KeyboardInterrupt
        return update(self)

    monkeypatch.setattr(Trainer, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(spec)
    monkeypatch.undo()
    assert run(spec)
    for name in ("predictor.safetensors", "encoder.safetensors", "losses.json", "metrics.jsonl"):
        assert (tmp_path / "result" / name).read_bytes() == (trained / "trained" / "result" / name).read_bytes(), name


def test_missing_result_names_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="has not ended"):
        build_world_model(tmp_path, tmp_path)


def test_spec_with_unknown_field_is_refused(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps({"recipe": small_recipe().resolved(), "folder": "x"}))
    with pytest.raises(InputError, match="no post-training spec"):
        Spec.read(tmp_path / "spec.json")
