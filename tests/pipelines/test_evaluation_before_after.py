"""Before and after: a verdict from paired intervals alone, honest where little was measured, and measures without labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.encoder import EncoderConfig, VideoEncoder
from models.preprocessing import Preprocess
from models.weights import save_module
from pipelines.errors import InputError
from pipelines.evaluation.before_after import NO_LABELS, verdict
from pipelines.evaluation.encoder_report import build_encoder_report, check_encoder_report
from pipelines.evaluation.held_out import HeldOut, halves_found, prediction_errors, read_held_out
from pipelines.evaluation.intervals import paired_mean, paired_share
from pipelines.evaluation.pictures import find_row
from pipelines.evaluation.probes import build_probes, check_probes
from pipelines.identity import clip_id
from pipelines.pretraining.objective import target_tokens
from pipelines.pretraining.run import build_student
from pipelines.pretraining.start import open_start
from pipelines.recipes import Recipe
from pipelines.schemas import CLIPS, table_of, write_table
from pipelines.video.encode import write_video

SIDE = 32


# -- intervals -----------------------------------------------------------------------------------------------------------


def false_verdicts(owners: np.ndarray, seed: int, draws: int = 1000) -> float:
    """How often a paired interval excludes zero when each owner's items have moved up or down alike, with equal chances."""
    random, names = np.random.default_rng(seed), np.unique(owners)
    wrong = 0
    for _ in range(draws):
        moved = random.choice([-1.0, 0.0, 1.0], size=len(names), p=[0.15, 0.7, 0.15])
        found = paired_share(moved[np.searchsorted(names, owners)], owners)
        wrong += not found.low <= 0 <= found.high
    return wrong / draws


@pytest.mark.parametrize("owners", [np.arange(12), np.arange(60), np.repeat(np.arange(15), 8)], ids=["few", "many", "eight clips a video"])
def test_nothing_changed_is_called_a_change_one_time_in_twenty_at_most(owners: np.ndarray) -> None:
    assert false_verdicts(owners, seed=1) <= 0.06


def test_a_few_items_that_all_went_one_way_prove_nothing_and_none_leave_doubt() -> None:
    few = paired_share(np.array([1.0, 1.0, 1.0, *[0.0] * 17]), np.arange(20))
    assert few.low < 0 < few.value < few.high
    many = paired_share(np.array([1.0] * 9 + [0.0] * 11), np.arange(20))
    assert many.low > 0
    none = paired_share(np.zeros(20), np.arange(20))
    assert none.value == 0 and none.low < 0 < none.high


def test_items_of_one_video_count_as_one_observation() -> None:
    gains = np.array([1.0] * 8 + [0.0] * 32)
    assert paired_share(gains, np.arange(40)).low > 0
    assert paired_share(gains, np.repeat(np.arange(5), 8)).low < 0
    assert paired_mean(gains, np.zeros(40)).low == -np.inf


# -- verdict -------------------------------------------------------------------------------------------------------------


def measured(task: str, kind: str, metric: str, before: float, after: float, low: float, high: float) -> list[dict[str, Any]]:
    values = {"start": (before, before, before), "trained": (after, after, after), "trained_minus_start": (after - before, low, high)}
    return [
        {"task": task, "features": kind, "encoder": name, "metric": metric, "value": value, "low": least, "high": most, "n": 80}
        for name, (value, least, most) in values.items()
    ]


def accuracy(task: str, before: float, after: float, low: float, high: float) -> list[dict[str, Any]]:
    return measured(task, "pooled_by_time", "accuracy", before, after, low, high)


HALVES = measured("held-out clips", "halves", "halves_found", 0.5, 0.6, 0.05, 0.15)


def test_the_interval_alone_says_better_worse_or_no_different() -> None:
    better = accuracy("push", 0.71, 0.741, 0.012, 0.05)
    found = verdict(better)
    assert found is not None and (found.word, found.caveat) == ("better", "")
    assert found.lines == ("better: +3.1 points [1.2, 5.0] on push (71.0 before, 74.1 after, 80 videos)",)
    worse, same = accuracy("lift", 0.7, 0.6, -0.15, -0.05), accuracy("turn", 0.7, 0.8, -0.01, 0.21)
    words = [verdict(rows) for rows in (worse, same, better + same, better + worse)]
    assert [each.word for each in words if each] == ["worse", "no different", "better", "mixed"]


def test_labels_decide_where_there_are_any_and_are_missed_where_there_are_none() -> None:
    labelled = verdict(accuracy("turn", 0.7, 0.7, -0.1, 0.1) + HALVES)
    assert labelled is not None and labelled.word == "no different" and labelled.others[0].startswith("better: +10.0 points")
    alone = verdict(HALVES)
    assert alone is not None and (alone.word, alone.caveat) == ("better", NO_LABELS)
    assert verdict([]) is None


def test_evaluation_videos_that_the_start_was_trained_on_are_told() -> None:
    found = verdict(accuracy("turn", 0.7, 0.7, -0.1, 0.1), 3, 12)
    assert found is not None and "trained on 3 of the 12 evaluation videos" in found.caveat
    alone = verdict(HALVES, 1, 4)
    assert alone is not None and alone.caveat.startswith(NO_LABELS) and "1 of the 4" in alone.caveat


def test_a_smaller_prediction_error_is_told_and_never_decides() -> None:
    errors = measured("held-out clips", "masked", "prediction_error", 0.8, 0.6, -0.25, -0.15)
    found = verdict(accuracy("turn", 0.7, 0.7, -0.1, 0.1) + errors)
    assert found is not None and found.word == "no different"
    assert found.others == ("better: -0.200 [-0.250, -0.150] on held-out clips: error of predicted hidden parts, of the constant guess (0.800 before, 0.600 after, 80 videos)",)
    assert verdict(errors) is None


# -- measures without labels ---------------------------------------------------------------------------------------------


def striped(number: int, frames: int = 16, step: int = 1) -> np.ndarray:
    """(frames, 32, 32, 3): stripes of a width and colour of their own that drift."""
    columns = (np.arange(SIDE)[None, :] + step * np.arange(frames)[:, None]) // (2 + number % 4) % 2
    colour = np.array([40 + 20 * (number % 8), 220 - 25 * (number % 5), 60 * (number % 3)], float)
    return (columns[:, None, :, None] * colour).astype(np.uint8).repeat(SIDE, axis=1)


@pytest.fixture(scope="module")
def target_artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled set whose classes are directions of drift, and an unlabelled one."""
    folder = tmp_path_factory.mktemp("before_after_targets")
    rows = []
    for index in range(18):
        path = folder / f"{index}.mp4"
        write_video(path, striped(index // 2, step=1 if index % 2 else -1), 8.0)
        import av

        with av.open(str(path)) as container:
            base = container.streams.video[0].time_base
            pts = sorted(packet.pts for packet in container.demux(video=0) if packet.pts is not None)
        assert base is not None
        end = pts[-1] + pts[1] - pts[0]
        rows.append({
            "clip_id": clip_id(str(index), pts[0], end, (base.numerator, base.denominator), "t"), "video_id": str(index), "path": str(path), "start_pts": pts[0],
            "end_pts": end, "time_base_num": base.numerator, "time_base_den": base.denominator, "frames": 16, "frame_rate": 8.0,
            "source": f"drift/{'train' if index < 10 else 'eval'}" if index < 16 else "plain/eval", "label": ("left", "right")[index % 2] if index < 16 else "",
        })  # fmt: skip
    write_table(table_of(CLIPS, rows), folder / "clips.parquet", CLIPS)
    return folder


def test_held_out_clips_are_those_that_evaluate_labelled_or_not(target_artefact: Path) -> None:
    found = read_held_out(target_artefact, 4, (SIDE, SIDE), fps=4.0)
    assert found is not None and sorted(found.videos) == sorted(str(index) for index in range(10, 18))
    assert found.first.shape == found.second.shape == (8, 4, SIDE, SIDE, 3)
    wanted = {str(index): striped(index // 2, step=1 if index % 2 else -1) for index in range(10, 18)}
    for clip, later, video in zip(found.first, found.second, found.videos, strict=True):  # 4 frames at 4 a second: a half's 8 at 8 a second
        assert np.abs(clip.astype(int) - wanted[video][[0, 2, 4, 6]]).mean() < 12 < np.abs(clip.astype(int) - wanted[video][[3, 5, 7, 9]]).mean()
        assert np.abs(later.astype(int) - wanted[video][[8, 10, 12, 14]]).mean() < 12


def test_other_halves_are_found_where_clips_look_different_and_by_chance_where_they_do_not() -> None:
    torch.manual_seed(0)
    encoder = VideoEncoder(EncoderConfig(embed_dim=32, depth=1, num_heads=2, img_size=(SIDE, SIDE), num_frames=4)).eval()
    preprocess, clips = Preprocess(height=SIDE, width=SIDE), np.stack([striped(number) for number in range(12)])
    names = np.array([str(number) for number in range(12)])
    own = HeldOut(clips[:, :4], clips[:, 8:12], names)
    assert halves_found(encoder, own, preprocess).mean() > 0.9
    noise = np.random.default_rng(0).integers(0, 255, (2, 12, 4, SIDE, SIDE, 3)).astype(np.uint8)
    assert halves_found(encoder, HeldOut(noise[0], noise[1], names), preprocess).mean() < 0.4


def networks_of(probe_recipe: Recipe, seed: int) -> dict[str, torch.nn.Module]:
    student = build_student(probe_recipe.model_copy(update={"seed": seed}), probe_recipe.pretraining.pretrain)
    return {"encoder": student.encoder.eval(), "target_encoder": student.encoder.eval(), "predictor": student.predictor.eval()}


def test_prediction_error_is_in_units_of_the_constant_guess(probe_recipe: Recipe, target_artefact: Path) -> None:
    clips = read_held_out(target_artefact, 4, (SIDE, SIDE), fps=4.0)
    assert clips is not None
    preprocess, networks = Preprocess(height=SIDE, width=SIDE), networks_of(probe_recipe, 0)
    found = prediction_errors(networks, clips, preprocess, probe_recipe)
    np.testing.assert_array_equal(found, prediction_errors(networks, clips, preprocess, probe_recipe))
    assert found.shape == (8,) and (found > 1).all()  # initial weights guess worse than a constant
    with torch.no_grad():
        tokens = target_tokens(networks["target_encoder"], torch.stack([preprocess(torch.from_numpy(clip)) for clip in clips.first]))
        networks["predictor"].predictor_proj.weight.zero_()
        networks["predictor"].predictor_proj.bias.copy_(tokens.mean((0, 1)))
    assert prediction_errors(networks, clips, preprocess, probe_recipe).mean() == pytest.approx(1.0, abs=0.1)


# -- the stage -----------------------------------------------------------------------------------------------------------


def artefact_in(folder: Path, networks: dict[str, torch.nn.Module]) -> Path:
    for name, module in networks.items():
        save_module(module, folder, name)
    (folder / "state.json").write_text(json.dumps({"verdict": {"state": "healthy", "line": "healthy: RankMe 20.0"}, "summary": {"steps": 6}}))
    from matplotlib.figure import Figure

    Figure(figsize=(1, 1)).savefig(folder / "curves.png")
    return folder


@pytest.fixture(scope="module")
def adapted(probe_recipe: Recipe, target_artefact: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """(encoder folder, probes folder, summary) of an encoder with another one as its start, and no robot."""
    start, encoder, probes = (tmp_path_factory.mktemp(name) for name in ("start", "adapted", "adapted_probes"))
    artefact_in(start, networks_of(probe_recipe, 1))
    artefact_in(encoder, networks_of(probe_recipe, 2))
    return encoder, probes, build_probes(probes, encoder, None, target_artefact, recipe=probe_recipe, start=open_start(start, probe_recipe).record)


def test_both_networks_are_probed_on_the_same_items_without_a_robot(adapted: tuple[Path, Path, dict[str, Any]]) -> None:
    _, probes, summary = adapted
    content = json.loads((probes / "probes.json").read_text())
    rows = content["rows"]
    assert not [row for row in rows if row["task"] in ("frame", "motion")] and content["held_out_episodes"] == 0
    for task, kind, metric in (("drift", "pooled_by_time", "accuracy"), ("held-out clips", "halves", "halves_found"), ("held-out clips", "masked", "prediction_error")):
        before, after, change = (find_row(rows, task, kind, name, metric) for name in ("start", "trained", "trained_minus_start"))
        assert before and after and change and before["n"] == after["n"] == change["n"]
        assert change["value"] == pytest.approx(after["value"] - before["value"]) and change["low"] <= change["value"] <= change["high"]
    assert content["verdict"]["word"] == summary["verdict"] and len(content["verdict"]["lines"]) == 1 and len(content["verdict"]["others"]) == 2
    assert check_probes(probes)["finite"].passed and (probes / "probes.png").stat().st_size < 100_000


def test_an_encoder_beside_itself_is_no_different_and_has_no_difference(probe_recipe: Recipe, target_artefact: Path, adapted: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    summary = build_probes(tmp_path, adapted[0], None, target_artefact, recipe=probe_recipe, start=open_start(adapted[0], probe_recipe).record)
    rows = json.loads((tmp_path / "probes.json").read_text())["rows"]
    assert summary["verdict"] == "no different"
    assert {row["value"] for row in rows if row["encoder"] == "trained_minus_start"} == {0.0}


def test_the_page_says_what_it_started_from_and_that_there_was_no_robot(adapted: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    encoder, probes, summary = adapted
    build_encoder_report(tmp_path, encoder, encoder, probes)
    page = (tmp_path / "encoder_report.html").read_text()
    assert check_encoder_report(tmp_path)["complete"].passed
    assert f"Before and after: {summary['verdict']}" in page and "no record: weights do not tell" in page and "No robot episodes were there" in page


def test_nothing_to_probe_with_is_an_error(probe_recipe: Recipe, adapted: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    write_table(table_of(CLIPS, []), tmp_path / "clips.parquet", CLIPS)
    with pytest.raises(InputError, match="nothing to probe"):
        build_probes(tmp_path, adapted[0], None, tmp_path, recipe=probe_recipe, start=open_start(adapted[0], probe_recipe).record)
