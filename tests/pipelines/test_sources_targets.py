"""Target sets of every kind: what their layout and weights mean, and which clips come out of them."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.checks import Check, failed
from pipelines.errors import InputError, Reject
from pipelines.recipes import PRESETS
from pipelines.schemas import CLIPS, QUARANTINE, read_table, table_of, write_table
from pipelines.sources import targets
from pipelines.sources.target_sets import SetConfig, read_targets_root, read_weights, root_digest
from pipelines.sources.targets import (
    TargetsConfig,
    build_no_targets,
    build_target_videos,
    check_target_videos,
    set_weights,
)
from pipelines.video.decode import decode_span
from pipelines.video.encode import write_video
from pipelines.video.media import member_path

RATE = 10.0


def shot(seed: int, frames: int) -> np.ndarray:
    """(T, 64, 96, 3) uint8: a bright square over a coarse background of its own, moving a little each frame."""
    random = np.random.default_rng(seed)
    background = np.kron(random.integers(0, 200, (4, 6, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    film = np.repeat(background[None], frames, axis=0)
    for number in range(frames):
        column = 4 + (number * 2) % 70
        film[number, 20:36, column : column + 16] = 255
    return film


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eight films of 1.2 s; the first two are 5 s long."""
    folder = tmp_path_factory.mktemp("films")
    paths = [folder / f"film_{number}.mp4" for number in range(8)]
    for number, path in enumerate(paths):
        write_video(path, shot(50 + number, 50 if number < 2 else 12), RATE)
    return paths


def lay_out(root: Path, films: list[Path], *sets: str) -> Path:
    places = [(name, split, label) for name in sets for split in ("train", "eval") for label in ("a", "b")]
    for film, place in zip(films, places, strict=True):
        folder = root.joinpath(*place)
        folder.mkdir(parents=True)
        shutil.copyfile(film, folder / "one.mp4")
    return root


@pytest.fixture
def targets_root(films: list[Path], tmp_path: Path) -> Path:
    return lay_out(tmp_path / "targets", films, "push", "lift")


def clip_rows(folder: Path) -> list[dict[str, Any]]:
    return read_table(folder / "clips.parquet", CLIPS).to_pylist()


def test_folder_sets_give_one_labelled_clip_a_file(targets_root: Path, tmp_path: Path) -> None:
    summary = build_target_videos(tmp_path, targets_root, TargetsConfig(licence="CC0"))
    rows = clip_rows(tmp_path)
    assert (summary["sets"], summary["clips"], summary["evaluation_clips"], summary["quarantined"]) == (2, 8, 4, 0)
    assert {(row["source"], row["label"]) for row in rows} == {
        (f"{name}/{split}", label) for name in ("push", "lift") for split in ("train", "eval") for label in "ab"
    }
    assert all(row["splitter"] == "whole-v1" and row["licence"] == "CC0" for row in rows)
    assert sorted(row["frames"] for row in rows) == [12] * 6 + [50] * 2
    assert np.load(tmp_path / "looks.npy").shape == (8, 8, 24, 24)
    assert set_weights(tmp_path) == {"lift": 0.5, "push": 0.5} and not failed(check_target_videos(tmp_path))
    listed = json.loads((tmp_path / "targets.json").read_text())
    assert {part["split"] for part in listed} == {"train", "eval"} and all(len(part["files"]) == 1 for part in listed)


def test_broken_file_is_a_row_of_its_set_and_workers_do_not_matter(targets_root: Path, tmp_path: Path) -> None:
    (targets_root / "push" / "train" / "a" / "broken.mp4").write_text("no video")
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        build_target_videos(folder, targets_root, TargetsConfig(workers=workers))
    (reject,) = read_table(tmp_path / "1" / "quarantine.parquet", QUARANTINE).to_pylist()
    assert reject["source"] == "push/train" and reject["path"].endswith("broken.mp4")
    for name in ("clips.parquet", "quarantine.parquet", "looks.npy", "targets.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_no_targets_are_an_artefact_that_passes_its_check(tmp_path: Path) -> None:
    assert build_no_targets(tmp_path)["sets"] == 0
    assert clip_rows(tmp_path) == [] and set_weights(tmp_path) == {} and not failed(check_target_videos(tmp_path))
    assert np.load(tmp_path / "looks.npy").shape == (0, 8, 24, 24)
    (tmp_path / "targets.json").write_text('[{"name": "push", "weight": 1.0, "split": "train", "label": "a", "files": []}]')
    assert failed(check_target_videos(tmp_path))


def test_stopped_build_goes_on_from_its_parts_to_the_same_bytes(targets_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "FILES_PER_PART", 3)
    cut, calls = targets.cut_targets, []

    def stopped(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return cut(*arguments)

    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    build_target_videos(tmp_path / "whole", targets_root)
    monkeypatch.setattr(targets, "cut_targets", stopped)
    with pytest.raises(KeyboardInterrupt):
        build_target_videos(tmp_path / "stopped", targets_root, work=tmp_path / "work")
    summary = build_target_videos(tmp_path / "stopped", targets_root, work=tmp_path / "work")
    assert (summary["cost"]["parts"], summary["cost"]["parts_found"]) == (3, 1)
    for name in ("clips.parquet", "quarantine.parquet", "looks.npy", "targets.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()


def test_weights_are_shares_and_relative_weights_are_normalised(targets_root: Path) -> None:
    path = targets_root / "targets.yaml"
    before = root_digest(targets_root)
    for text in ("relative_weights: {push: 3, lift: 1}", "weights: {push: 0.75, lift: 0.25}", "weights: {push: 0.75, lift: 0.2500000001}"):
        path.write_text(text)
        assert {part.name: part.weight for part in read_targets_root(targets_root)} == pytest.approx({"push": 0.75, "lift": 0.25})
        assert root_digest(targets_root) != before
    for text in ("weights: {push: 1}", "weights: {push: -1, lift: 2}", "weights: {push: 0, lift: 0}", "[]", "weights: {push: .nan, lift: 1}", "weights: {push: yes, lift: 0}", "wieghts: {}"):
        path.write_text(text)
        with pytest.raises(InputError, match="does not weigh"):
            read_targets_root(targets_root)
    path.write_text("weights: {push: 3, lift: 1}")
    with pytest.raises(InputError, match="do not sum to 1") as caught:
        read_targets_root(targets_root)
    assert caught.value.found == "sum 4" and "weights: {lift: 0.25, push: 0.75}" in caught.value.remedy
    path.write_text("weights: {push: 0.5, lift: 0.5}\nrelative_weights: {push: 1, lift: 1}")
    with pytest.raises(InputError, match="weighs its sets twice"):
        read_targets_root(targets_root)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.sampled_from("abcde"), st.floats(0, 1e3), min_size=1))
def test_weights_that_an_error_says_to_paste_are_accepted(numbers: dict[str, float]) -> None:
    sets = dict.fromkeys(numbers, SetConfig())
    try:
        weights = read_weights(Path("targets.yaml"), {"weights": numbers}, sets)
    except InputError as error:
        if sum(numbers.values()) == 0:
            assert "does not weigh" in error.problem
            return
        text = error.remedy.removeprefix("paste ").split(", or call")[0]
        weights = read_weights(Path("targets.yaml"), yaml.safe_load(text), sets)
    assert sum(weights.values()) == pytest.approx(1.0, abs=1e-12)
    total = sum(numbers.values())
    assert all(weights[name] == pytest.approx(numbers[name] / total, abs=1e-6) for name in numbers)


def test_badly_laid_out_target_roots_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder"):
        read_targets_root(tmp_path / "none")
    with pytest.raises(InputError, match="no target set"):
        read_targets_root(tmp_path)
    (tmp_path / "push" / "train" / "left").mkdir(parents=True)
    with pytest.raises(InputError, match="no train videos"):
        read_targets_root(tmp_path)


# -- a file that names sets by kind ------------------------------------------------------------------------------------


def write_sets(path: Path, sets: dict[str, Any], **more: Any) -> Path:
    path.write_text(yaml.safe_dump({"sets": sets, **more}))
    return path


@pytest.fixture
def mixed(films: list[Path], tmp_path: Path) -> Path:
    """A targets file with a set of each form: COIN segments, an SSv2 list, a folder and a manifest with a tar member."""
    coin, ssv2 = tmp_path / "coin" / "7", tmp_path / "ssv2"
    coin.mkdir(parents=True)
    ssv2.mkdir()
    for film, place in zip(films[:4], (coin / "t.mp4", coin / "e.mp4", ssv2 / "1.mp4", ssv2 / "2.mp4"), strict=True):
        shutil.copyfile(film, place)
    steps = [{"segment": [0.0, 1.04]}, {"segment": [0.97, 2.0]}, {"segment": [2.0, 2.0]}, {"segment": [4.5, 60.0]}]
    entry = {"recipe_type": 7, "class": "ChangeTire", "annotation": steps}
    database = {"t": {**entry, "subset": "training"}, "e": {**entry, "subset": "testing", "annotation": steps[:1]}}
    (tmp_path / "COIN.json").write_text(json.dumps({"database": database}))
    for split, video in (("train", "1"), ("validation", "2")):
        (tmp_path / f"x-{split}.json").write_text(json.dumps([{"id": video, "template": f"Moving [something] {video}"}]))
    lay_out(tmp_path / "mine", films[4:], ".")
    import tarfile

    with tarfile.open(tmp_path / "more.tar", "w") as opened:
        opened.add(films[5], "0.mp4")
    with open(tmp_path / "list.csv", "w", newline="") as handle:
        rows = [("path", "label", "split"), (films[4], "a", "train"), (member_path("more.tar", "0.mp4"), "b", "val"), ("gone.mp4", "a", "test")]
        csv.writer(handle).writerows(rows)
    return write_sets(tmp_path / "targets.yaml", {
        "coin": {"kind": "coin", "root": "coin", "annotations": "COIN.json", "weight": 0.5, "licence": "research"},
        "ssv2": {"kind": "ssv2", "root": "ssv2", "annotations": {"train": "x-train.json", "eval": "x-validation.json"}, "weight": 0.25},
        "mine": {"kind": "folder", "root": "mine", "weight": 0.125}, "list": {"kind": "manifest", "path": "list.csv", "weight": 0.125},
    })  # fmt: skip


def test_sets_of_every_kind_become_clips_of_their_split(mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    summary = build_target_videos(out, mixed, TargetsConfig(licence="mine"))
    assert set_weights(out) == {"coin": 0.5, "ssv2": 0.25, "mine": 0.125, "list": 0.125}
    rows = clip_rows(out)
    clips = sorted((row["source"], row["label"], round(row["start_s"], 3), round(row["end_s"], 3), row["licence"]) for row in rows)
    assert clips == [
        ("coin/eval", "ChangeTire", 0.0, 1.0, "research"), ("coin/train", "ChangeTire", 0.0, 1.0, "research"),
        ("coin/train", "ChangeTire", 1.0, 2.0, "research"), ("coin/train", "ChangeTire", 4.5, 5.0, "research"),
        ("list/eval", "b", 0.0, 1.2, "mine"), ("list/train", "a", 0.0, 1.2, "mine"),
        *((f"mine/{split}", label, 0.0, 1.2, "mine") for split in ("eval", "train") for label in "ab"),
        ("ssv2/eval", "Moving something 2", 0.0, 1.2, "mine"), ("ssv2/train", "Moving something 1", 0.0, 1.2, "mine"),
    ]  # fmt: skip
    rejects = read_table(out / "quarantine.parquet", QUARANTINE).to_pylist()
    assert sorted((row["source"], row["code"]) for row in rejects) == [("coin/train", "too_short"), ("list/eval", "unreadable")]
    assert summary["clips"] == len(rows) == 12 and summary["evaluation_clips"] == 5
    for row in rows:
        frames, _ = decode_span(row["path"], row["start_pts"], row["end_pts"], (row["time_base_num"], row["time_base_den"]))
        assert len(frames) == row["frames"]
    assert len({row["clip_id"] for row in rows if row["source"].startswith("coin/train")}) == 3


def test_file_of_two_sets_is_a_clip_of_both(films: list[Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        rows = [("path", "label", "split"), *((film, str(number % 2), "train" if number < 2 else "test") for number, film in enumerate(films[4:]))]
        with open(tmp_path / f"{name}.csv", "w", newline="") as handle:
            csv.writer(handle).writerows(rows)
    sets = {name: {"kind": "manifest", "path": f"{name}.csv"} for name in ("one", "two")}
    build_target_videos(tmp_path, write_sets(tmp_path / "sets.yaml", sets))
    assert sorted((Path(row["path"]).name, row["source"]) for row in clip_rows(tmp_path)) == sorted(
        (film.name, f"{name}/{'train' if number < 2 else 'eval'}") for number, film in enumerate(films[4:]) for name in ("one", "two")
    )
    assert not failed(check_target_videos(tmp_path))


def test_limit_takes_segments_spread_over_the_video(mixed: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(mixed.read_text())
    sets = {"coin": {**content["sets"]["coin"], "weight": 1.0, "clips_per_video": 2}}
    parts = read_targets_root(write_sets(tmp_path / "limited.yaml", sets))
    assert [(part.split, part.spans) for part in parts] == [("train", ((0.97, 2.0), (4.5, 60.0))), ("eval", ((0.0, 1.04),))]


def test_folder_and_file_go_together_and_digest_follows_every_part(targets_root: Path, mixed: Path, films: list[Path]) -> None:
    ssv2 = yaml.safe_load(mixed.read_text())["sets"]["ssv2"]
    sets = {"ssv2": {**ssv2, "root": str(mixed.parent / "ssv2"), "annotations": str(mixed.parent), "weight": None}}
    write_sets(targets_root / "targets.yaml", sets, weights={"ssv2": 0.5, "push": 0.25, "lift": 0.25})
    assert {part.name for part in read_targets_root(targets_root)} == {"ssv2", "push", "lift"}
    before = root_digest(targets_root)
    (mixed.parent / "x-train.json").write_text(json.dumps([{"id": "1", "template": "Another [label]"}]))
    changed = root_digest(targets_root)
    shutil.copyfile(films[6], mixed.parent / "ssv2" / "2.mp4")
    assert len({before, changed, root_digest(targets_root)}) == 3


def test_set_without_labels_passes_and_one_label_among_labels_does_not(films: list[Path], tmp_path: Path) -> None:
    for number, labels in enumerate((("", "", "", ""), ("a", "b", "a", "a"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        rows = [("path", "label", "split"), *zip(films[4:], labels, ("train", "train", "val", "val"), strict=True)]
        with open(folder / "list.csv", "w", newline="") as handle:
            csv.writer(handle).writerows(rows)
        build_target_videos(folder, write_sets(folder / "sets.yaml", {"x": {"kind": "manifest", "path": "list.csv"}}))
        assert bool(failed(check_target_videos(folder))) == bool(number)


def test_files_that_describe_no_sets_are_refused_in_words(mixed: Path, films: list[Path], tmp_path: Path) -> None:
    film = str(films[4])
    (tmp_path / "torn.csv").write_text(f"path,label,split\n{film},a,train\n{film},a,val\n")
    (tmp_path / "short.csv").write_text(f"path,label\n{film},a\n")
    (tmp_path / "odd.csv").write_text(f"path,label,split\n{film},a,somewhere\n")
    (tmp_path / "half.csv").write_text(f"path,label,split\n{film},a,train\n")
    (tmp_path / "gone.csv").write_text("path,label,split\nnone.mp4,a,train\n")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"kind": "manifest", "path": "torn.csv"}, "two splits or labels"), ({"kind": "manifest", "path": "short.csv"}, "no column split"),
        ({"kind": "manifest", "path": "odd.csv"}, "unknown split"), ({"kind": "manifest", "path": "half.csv"}, "no eval videos"),
        ({"kind": "manifest", "path": "gone.csv"}, "names no file that is there"), ({"kind": "manifest", "path": "none.csv"}, "does not exist"),
        ({"kind": "manifest"}, "has no path"), ({"kind": "ssv2"}, "has no root"), ({"kind": "tfrecord"}, "does not describe its sets"),
        ({"kind": "folder", "root": "mine", "wieght": 1}, "does not describe its sets"), ({"kind": "folder", "root": "ssv2"}, "no train videos"),
        ({"kind": "ssv2", "root": "coin", "annotations": "x-train.json"}, "fit no video"), ({"kind": "ssv2", "root": "nowhere", "annotations": "x-train.json"}, "not a folder"),
        ({"kind": "coin", "root": "coin", "annotations": "COIN.json", "clips_per_video": -1}, "does not describe its sets"),
    ]  # fmt: skip
    for settings_, problem in cases:
        with pytest.raises(InputError, match=problem) as caught:
            read_targets_root(write_sets(tmp_path / "case.yaml", {"x": settings_}))
        assert caught.value.expected and caught.value.remedy, settings_
    (tmp_path / "case.yaml").write_text("sets: [unclosed")
    with pytest.raises(InputError, match="cannot be read"):
        read_targets_root(tmp_path / "case.yaml")


def test_preset_of_v_jepa_2_has_the_published_shares_and_waits_for_roots() -> None:
    preset = PRESETS / "targets" / "vjepa2.yaml"
    content = yaml.safe_load(preset.read_text())
    assert {name: part["weight"] for name, part in content["sets"].items()} == {"kinetics710": 0.70, "ssv2": 0.125, "coin": 0.125, "epic_kitchens": 0.05}
    with pytest.raises(InputError, match="target set coin has no root") as caught:
        read_targets_root(preset)
    assert "targets file" in caught.value.remedy


# -- what must not be lost ---------------------------------------------------------------------------------------------


def judged(folder: Path, files: dict[str, list[str]], clips: list[tuple[str, str, str]], rejects: dict[str, Reject]) -> Check:
    """The check on an artefact of these files by "<set>/<split>", clips (source, label, path) and codes of rejected files."""
    parts = [{"name": source.split("/")[0], "split": source.split("/")[1], "label": "", "weight": 1.0, "files": own} for source, own in files.items()]
    (folder / "targets.json").write_text(json.dumps(parts))
    rows = [{"clip_id": str(number), "source": source, "label": label, "path": path} for number, (source, label, path) in enumerate(clips)]
    write_table(table_of(CLIPS, rows), folder / "clips.parquet", CLIPS)
    write_table(table_of(QUARANTINE, [{"path": path, "code": code.value} for path, code in rejects.items()]), folder / "quarantine.parquet", QUARANTINE)
    return check_target_videos(folder)["not_empty"]


def test_files_are_what_the_check_counts_not_clips(tmp_path: Path) -> None:
    train, held_out = [f"t{number}" for number in range(40)], ["e0"]
    clips = [("x/train", "", path) for path in train[:2] for _ in range(50)] + [("x/eval", "", "e0")]
    check = judged(tmp_path, {"x/train": train, "x/eval": held_out}, clips, dict.fromkeys(train[2:], Reject.TRUNCATED))
    assert not check.passed and "x/train: 100 clips of 0 labels from 2 of 40 files" in check.found
    clips += [("x/train", "", path) for path in train[2:20]]
    assert judged(tmp_path, {"x/train": train, "x/eval": held_out}, clips, dict.fromkeys(train[20:], Reject.TRUNCATED)).passed


@pytest.mark.parametrize("code", [Reject.TIMEOUT, Reject.WORKER_DIED, Reject.UNREADABLE, Reject.NOT_A_VIDEO])
def test_evaluation_file_that_cannot_be_held_out_stops_the_curation(tmp_path: Path, code: Reject) -> None:
    files = {"x/train": ["t0", "t1"], "x/eval": ["e0", "e1", "e2"]}
    clips = [("x/train", "", "t0"), ("x/eval", "", "e0"), ("x/eval", "", "e1")]
    check = judged(tmp_path, files, clips, {"t1": Reject.TRUNCATED, "e2": code})
    assert not check.passed and f"cannot be kept out of the pool: e2: {code}" in check.found
    assert "run the same again" in check.remedy and "out of their set" in check.remedy
    assert judged(tmp_path, files, clips, {"t1": code, "e2": Reject.TOO_SHORT}).passed


def test_evaluation_file_without_a_label_is_held_out(targets_root: Path, films: list[Path], tmp_path: Path) -> None:
    for split, film in (("train", films[5]), ("eval", films[6])):
        shutil.copyfile(film, targets_root / "push" / split / "loose.mp4")
    build_target_videos(tmp_path, targets_root)
    loose = {(row["source"], row["label"]) for row in clip_rows(tmp_path) if row["path"].endswith("loose.mp4")}
    assert loose == {("push/train", ""), ("push/eval", "")} and not failed(check_target_videos(tmp_path))


def test_target_videos_out_of_reach_are_refused_by_name_and_a_label_may_be_a_link(targets_root: Path, tmp_path: Path) -> None:
    place = targets_root / "push" / "eval"
    (place / "a").rename(tmp_path / "elsewhere")
    (place / "a").symlink_to(tmp_path / "elsewhere")
    (place / "b" / "._one.mp4").write_text("what a Mac leaves behind")
    assert [part.label for part in read_targets_root(targets_root) if (part.name, part.split) == ("push", "eval")] == ["a", "b"]
    for link in (place / "lost.mp4", place / "b" / "more"):
        link.symlink_to(tmp_path / ("elsewhere" if link.name == "more" else "nowhere"))
        with pytest.raises(InputError, match="cannot be reached") as caught:
            read_targets_root(targets_root)
        assert str(link) in caught.value.found
        link.unlink()


def test_videos_without_segments_leave_the_segments_of_others_in_place(mixed: Path, films: list[Path], tmp_path: Path) -> None:
    database = json.loads((tmp_path / "COIN.json").read_text())["database"]
    shutil.copyfile(films[4], tmp_path / "coin" / "7" / "a.mp4")
    database["a"] = {**database["t"], "annotation": []}
    (tmp_path / "COIN.json").write_text(json.dumps({"database": database}))
    sets = {"coin": {"kind": "coin", "root": "coin", "annotations": "COIN.json"}}
    build_target_videos(tmp_path, write_sets(tmp_path / "coin.yaml", sets))
    clips = {(Path(row["path"]).name, round(row["start_s"], 3), round(row["end_s"], 3)) for row in clip_rows(tmp_path)}
    assert clips == {("a.mp4", 0.0, 1.2), ("e.mp4", 0.0, 1.0), ("t.mp4", 0.0, 1.0), ("t.mp4", 1.0, 2.0), ("t.mp4", 4.5, 5.0)}


def test_relative_root_gives_absolute_paths_and_a_tilde_is_the_home(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_targets_root(mixed)
    monkeypatch.chdir(tmp_path)
    assert read_targets_root(Path("targets.yaml")) == whole
    monkeypatch.setenv("HOME", str(tmp_path))
    sets = {"list": {"kind": "manifest", "path": "~/list.csv", "root": "~"}, "mine": {"kind": "folder", "root": "~/mine"}}
    (tmp_path / "away").mkdir()
    write_sets(tmp_path / "away" / "targets.yaml", sets)
    files = {(part.name, path) for part in read_targets_root(Path("~/away/targets.yaml")) for path in part.files}
    assert files == {(part.name, path) for part in whole for path in part.files if part.name in sets}


def test_scenes_of_evaluation_files_are_there_to_be_found_in_the_pool(targets_root: Path, tmp_path: Path) -> None:
    """A pool clip is a scene: beside a whole film of 12 s it would look like nothing."""
    long = np.concatenate([shot(80, 60), shot(81, 60)])
    write_video(targets_root / "push" / "eval" / "b" / "long.mp4", long, RATE)
    try:
        (tmp_path / "made").mkdir()
        summary = build_target_videos(tmp_path / "made", targets_root)
    finally:
        (targets_root / "push" / "eval" / "b" / "long.mp4").unlink()
    rows = read_table(tmp_path / "made" / "clips.parquet", CLIPS).to_pylist()
    scenes = [row for row in rows if row["path"].endswith("long.mp4") and row["source"] == "push/eval scenes"]
    assert len(scenes) >= 2 and all(row["end_s"] - row["start_s"] < 7 and not row["label"] for row in scenes)
    assert not any(row["source"] == "push/train scenes" for row in rows)
    assert summary["clips"] == len(rows) - summary["evaluation_scenes"] and not failed(check_target_videos(tmp_path / "made"))
