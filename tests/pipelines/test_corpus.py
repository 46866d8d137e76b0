from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.corpus.motions import FILMS
from pipelines.corpus.pool import SCALES, Job, make_corpus, make_file, plan_pool
from pipelines.corpus.targets import TARGETS, plan_targets
from pipelines.episodes.episode import decode_all
from pipelines.errors import InputError
from pipelines.identity import file_sha256

SEED = 3


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("corpus") / "smoke"
    return folder, make_corpus(folder, seed=SEED, scale="smoke", workers=2)


def test_every_film_has_the_frames_it_declares(corpus: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = corpus
    listed = {entry["path"] for entry in summary["pool"] + summary["targets"]}
    assert listed == {path.relative_to(folder).as_posix() for path in folder.rglob("*.mp4")}
    for entry in summary["pool"]:
        if entry["damage"] is None:
            assert decode_all(folder / entry["path"]).shape == (entry["frames"], entry["height"], entry["width"], 3)


def test_cuts_are_where_the_ground_truth_says(corpus: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = corpus
    (shots,) = [entry for entry in summary["pool"] if entry["cuts_s"] and not entry["twin"]]
    frames = decode_all(folder / shots["path"]).astype(int)
    change = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
    cuts = [round(cut * shots["frame_rate"]) - 1 for cut in shots["cuts_s"]]
    assert len(cuts) == len(shots["shots"]) - 1
    assert change[cuts].min() > 3 * np.delete(change, cuts).max()


def test_copies_are_exact_or_only_alike(corpus: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = corpus
    copies = {entry["copy"]: entry for entry in summary["pool"] if entry["twin"]}
    assert file_sha256(folder / copies["exact"]["path"]) == file_sha256(folder / copies["exact"]["twin"])
    again = copies["reencoded"]
    assert file_sha256(folder / again["path"]) != file_sha256(folder / again["twin"])
    assert len(decode_all(folder / again["path"])) == len(decode_all(folder / again["twin"]))


def test_damaged_files_are_damaged(corpus: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = corpus
    damaged = {entry["damage"]: folder / entry["path"] for entry in summary["pool"] if entry["damage"]}
    assert set(damaged) == {"truncated", "text", "empty"}
    for path in damaged.values():
        with pytest.raises(InputError):
            decode_all(path)
    assert damaged["empty"].stat().st_size == 0
    assert b"ftyp" in damaged["truncated"].read_bytes()[:16] and b"moov" not in damaged["truncated"].read_bytes()


def test_a_target_film_and_its_reverse_hold_the_same_pictures(corpus: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = corpus
    for set_name, target in TARGETS.items():
        for split in ("train", "eval"):
            rows = [row for row in summary["targets"] if (row["set"], row["split"]) == (set_name, split)]
            for pair in {row["pair"] for row in rows}:
                paths = {row["label"]: folder / row["path"] for row in rows if row["pair"] == pair}
                assert set(paths) == set(target.labels)
                forwards, backwards = (decode_all(paths[label]).astype(int) for label in target.labels)
                assert np.abs(forwards - backwards[::-1]).mean() < 4  # what encoding twice may change
                assert np.abs(forwards[0] - forwards[-1]).max() > 60, f"nothing moves in {paths}"


def test_no_target_film_is_in_both_splits(corpus: tuple[Path, dict[str, Any]]) -> None:
    _, summary = corpus
    splits = {
        split: {(row["set"], row["pair"]) for row in summary["targets"] if row["split"] == split}
        for split in ("train", "eval")
    }
    assert splits["train"] and splits["eval"] and not splits["train"] & splits["eval"]


def test_made_again_at_once_and_after_an_interruption_only_what_is_missing(
    corpus: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, summary = tmp_path / "smoke", corpus[1]
    shutil.copytree(corpus[0], folder)
    assert make_corpus(folder, seed=SEED, scale="smoke") == summary
    # As an interrupted run leaves it: no marker, one film missing.
    os.rename(folder / "corpus.json", folder / ".corpus.json.started")
    (folder / ".corpus.json.started").write_text(json.dumps(summary["request"], sort_keys=True))
    missing, kept = folder / summary["pool"][0]["path"], folder / summary["pool"][1]["path"]
    before, touched = file_sha256(missing), kept.stat().st_mtime_ns
    missing.unlink()
    assert make_corpus(folder, seed=SEED, scale="smoke", workers=1) == summary
    assert file_sha256(missing) == before and kept.stat().st_mtime_ns == touched


def test_a_film_depends_on_seed_and_number_only(corpus: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    films = [film for film in plan_pool(SEED, SCALES["smoke"]) if film.shots[0][0] in ("fall", "lift")]
    pairs = plan_targets(tmp_path, seed=SEED, train=2, evaluation=2)
    for item in (films[1], pairs[5], films[0]):  # in this process and another order than the workers took
        make_file(Job(str(tmp_path), SEED, item))
    for path in tmp_path.rglob("*.mp4"):
        assert file_sha256(path) == file_sha256(corpus[0] / path.relative_to(tmp_path)), path.name


def test_demo_scale_promises_three_hundred_clips() -> None:
    shape = SCALES["demo"]
    films = plan_pool(7, shape)
    shots = sum(len(film.shots) for film in films)
    targets = sum(2 for _ in plan_targets(Path("."), seed=7, train=shape.train, evaluation=shape.evaluation))
    divided = sum(-(-seconds // 6) for film in films for _, seconds in film.shots)  # long shots are divided at 6 s
    assert shots >= 150 and targets == 4 * 2 * (8 + 6) and divided + targets >= 300
    assert {kind for film in films for kind, _ in film.shots} == set(FILMS)
    arm_seconds = sum(s for film in films for kind, s in film.shots if kind in ("free", "push", "lift", "grip"))
    assert arm_seconds > 0.5 * sum(s for film in films for _, s in film.shots)
    assert all(film.height % 2 == film.width % 2 == 0 for film in films)
    assert len({film.name for film in films}) == len(films)


def test_plan_is_a_function_of_the_seed() -> None:
    shape = SCALES["demo"]
    assert plan_pool(1, shape) == plan_pool(1, shape) != plan_pool(2, shape)


def test_unknown_scale_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="demo or study or smoke"):
        make_corpus(tmp_path, seed=0, scale="huge")
