"""Verify: whatever byte of a set of shards is not as it was written, it says which tar and which clip."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from conftest import numbered_frames

from pipelines import schemas
from pipelines.shards.found import index_tars
from pipelines.shards.index import INDEX_FILE
from pipelines.shards.tars import BLOCK, REDACTED, header_of, member_places
from pipelines.shards.verify import verification, verify_shards
from pipelines.store import REDACTIONS, Store
from pipelines.video.encode import write_video


def quiet(*_: object) -> None:
    return None


def verify(folder: Path) -> list[str]:
    return verify_shards(folder, progress=quiet)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return schemas.read_table(folder / INDEX_FILE, schemas.SHARD_INDEX).to_pylist()


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    schemas.write_table(schemas.table_of(schemas.SHARD_INDEX, rows), folder / INDEX_FILE, schemas.SHARD_INDEX)


def flip(path: Path, place: int, bit: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= bit
    path.write_bytes(data)


def redact(folder: Path, clips: list[dict[str, Any]]) -> None:
    """As a takedown does: the members' names are replaced and their bytes are zeros; the rest of the tar stays where it is."""
    tar = folder / clips[0]["shard"]
    data = bytearray(tar.read_bytes())
    number = 0
    for name, (offset, length) in member_places(tar).items():
        if name.partition(".")[0] in {clip["clip_id"] for clip in clips}:
            data[offset - BLOCK : offset] = header_of(f"{REDACTED}{number}", length)
            data[offset : offset + length] = bytes(length)
            number += 1
    tar.write_bytes(data)
    note = {tar.name: {"sha256": hashlib.sha256(data).hexdigest(), "clips": [clip["clip_id"] for clip in clips], "takedown": "t1"}}
    (folder / REDACTIONS).write_text(json.dumps(note))


def test_a_flipped_bit_anywhere_in_a_tar_is_found_and_its_tar_named(shards_copy: Callable[[], Path]) -> None:
    folder = shards_copy()
    tar = sorted(folder.glob("*.tar"))[1]
    whole = tar.read_bytes()
    random = np.random.default_rng(0)
    places = {0, 155, BLOCK - 1, len(whole) - 1, len(whole) - 2 * BLOCK, *random.integers(0, len(whole), 60).tolist()}
    for offset, length in member_places(tar).values():
        places |= {offset - BLOCK + 100, offset - 1, offset, offset + length - 1, offset + length}
    for place in sorted(places):
        flip(tar, place, 1 << int(random.integers(8)))
        problems = verify(folder)
        assert problems and all(words.startswith(tar.name) for words in problems), (place, problems)
        tar.write_bytes(whole)
    assert verify(folder) == []


def test_damage_to_one_clip_names_that_clip(shards_copy: Callable[[], Path]) -> None:
    folder = shards_copy()
    row = rows_of(folder)[2]
    flip(folder / row["shard"], row["offset"] + row["length"] // 2)
    (problem,) = verify(folder)
    assert row["shard"] in problem and row["clip_id"] in problem and "sha256" in problem


@pytest.mark.parametrize("left", [0.5, 0.98])
def test_a_tar_whose_end_is_cut_is_named_with_the_clips_it_lost(shards_copy: Callable[[], Path], left: float) -> None:
    folder = shards_copy()
    rows = rows_of(folder)
    tar = folder / rows[0]["shard"]
    size = int(tar.stat().st_size * left)
    tar.write_bytes(tar.read_bytes()[:size])
    problems = " | ".join(verify(folder))
    assert f"{tar.name}: not readable as a tar" in problems
    for row in rows:
        lost = row["shard"] == tar.name and row["offset"] + row["length"] > size
        assert (f"{row['clip_id']}.mp4: missing" in problems) == lost


def test_missing_extra_and_swapped_tars_are_named(shards_copy: Callable[[], Path]) -> None:
    folder = shards_copy()
    first, second = sorted(folder.glob("*.tar"))[:2]
    kept = first.read_bytes(), second.read_bytes()
    (folder / "shard-000099.tar").write_bytes(kept[0])
    assert verify(folder) == ["shard-000099.tar: not in the index"]
    (folder / "shard-000099.tar").unlink()
    first.unlink()
    assert verify(folder) == [f"{first.name}: missing"]
    first.write_bytes(kept[1])
    second.write_bytes(kept[0])
    problems = verify(folder)
    for row in rows_of(folder):
        if row["shard"] in (first.name, second.name):
            assert any(words.startswith(row["shard"]) and row["clip_id"] in words and "missing" in words for words in problems)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("frames", 29), ("first_pts_s", 0.1), ("last_pts_s", 9.0), ("width", 44), ("height", 30), ("offset", 512), ("length", 100),
        ("source_start_s", 77.0), ("video_id", "other"), ("sha256", "0" * 64), ("weight", float("nan")), ("weight", -1.0),
    ],
)  # fmt: skip
def test_an_index_row_that_says_something_else_is_named(shards_copy: Callable[[], Path], column: str, value: Any) -> None:
    folder = shards_copy()
    rows = rows_of(folder)
    rows[1][column] = value
    write_rows(folder, rows)
    problems = verify(folder)
    assert problems and all(rows[1]["clip_id"] in words for words in problems)


def test_a_row_that_points_into_another_clip_and_a_clip_with_two_rows_are_named(shards_copy: Callable[[], Path]) -> None:
    folder = shards_copy()
    rows = rows_of(folder)
    same = [row for row in rows if row["shard"] == rows[0]["shard"]][:2]
    assert len(same) == 2
    borrowed = {name: same[1][name] for name in ("offset", "length", "sha256")}
    write_rows(folder, [{**row, **(borrowed if row is same[0] else {})} for row in rows])
    problems = verify(folder)
    assert problems and all(same[0]["clip_id"] in words for words in problems)
    write_rows(folder, [*rows, rows[-1]])
    (problem,) = verify(folder)
    assert rows[-1]["clip_id"] in problem


def test_clips_that_nobody_draws_are_read_too(shards_copy: Callable[[], Path]) -> None:
    folder = shards_copy()
    rows = rows_of(folder)
    rows[0]["weight"] = 0.0
    write_rows(folder, rows)
    assert verify(folder) == []
    flip(folder / rows[0]["shard"], rows[0]["offset"] + 40)
    assert rows[0]["clip_id"] in verify(folder)[0]


def test_redacted_clips_are_no_damage_and_those_left_are_read_as_before(shards_copy: Callable[[], Path]) -> None:
    folder = shards_copy()
    rows = rows_of(folder)
    redact(folder, rows[:1])
    assert verify(folder) == []
    read = list(webdataset.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False))
    assert {sample["__key__"]: hashlib.sha256(sample["mp4"]).hexdigest() for sample in read} == {row["clip_id"]: row["sha256"] for row in rows[1:]}


def test_redaction_hides_no_other_loss(shards_copy: Callable[[], Path]) -> None:
    folder = shards_copy()
    rows = rows_of(folder)
    same = [row for row in rows if row["shard"] == rows[0]["shard"]][:2]
    before = (folder / rows[0]["shard"]).read_bytes()
    redact(folder, same)
    note = json.loads((folder / REDACTIONS).read_text())
    note[rows[0]["shard"]]["clips"] = [same[0]["clip_id"]]
    (folder / REDACTIONS).write_text(json.dumps(note))
    assert {words.split(": ")[1] for words in verify(folder)} == {f"{same[1]['clip_id']}.{kind}" for kind in ("json", "mp4")}
    (folder / REDACTIONS).unlink()
    assert any("does not say so" in words for words in verify(folder))
    redact(folder, same[:1])
    place = next(offset for name, (offset, _) in member_places(folder / rows[0]["shard"]).items() if name.startswith(REDACTED))
    flip(folder / rows[0]["shard"], place + 3)
    assert any("not all zeros" in words for words in verify(folder))
    (folder / rows[0]["shard"]).write_bytes(before)
    assert any(same[0]["clip_id"] in words and "still there" in words for words in verify(folder))


@pytest.fixture
def sealed(made_shards: Path, tmp_path: Path) -> tuple[Store, Path]:
    def build(folder: Path) -> dict[str, Any]:
        shutil.copytree(made_shards, folder, dirs_exist_ok=True)
        return {}

    store = Store.open(tmp_path / "store")
    artefact = store.produce("training_shards", build, config={"gop": 16})
    store.accept(artefact, {})
    return store, artefact.path


def test_a_sealed_index_cannot_be_replaced_and_a_sealed_tar_cannot_vanish_with_its_rows(sealed: tuple[Store, Path]) -> None:
    _, folder = sealed
    assert verify(folder) == []
    rows = rows_of(folder)
    gone = rows[0]["shard"]
    (folder / gone).unlink()
    write_rows(folder, [row for row in rows if row["shard"] != gone])
    problems = verify(folder)
    assert f"{gone}: missing" in problems and any(INDEX_FILE in words for words in problems)


def test_key_frames_farther_apart_than_the_shards_config_allows_are_named(sealed: tuple[Store, Path]) -> None:
    _, folder = sealed
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    (folder / "MANIFEST.json").write_text(json.dumps({**manifest, "config": {"gop": 12}}))
    problems = verify(folder)
    assert {words.split(": ")[1].removesuffix(".mp4") for words in problems} == {row["clip_id"] for row in rows_of(folder)}
    assert all("key frame" in words for words in problems)


def test_the_command_tells_what_is_wrong_and_exits_with_1(sealed: tuple[Store, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from tubelet import build_app

    store, folder = sealed

    def command(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["tubelet", "shards", "verify", *arguments])
        with pytest.raises(SystemExit) as ended:
            build_app()(standalone_mode=True)
        return int(ended.value.code or 0), capsys.readouterr().out

    code, text = command("--store", str(store.root))
    assert code == 0 and str(folder) in text and "6 clips" in text
    redact(folder, rows_of(folder)[:1])
    assert "5 clips" in verification(folder, store.root)[0] and "1 taken down" in verification(folder, store.root)[0]
    row = rows_of(folder)[-1]
    flip(folder / row["shard"], row["offset"])
    code, text = command(str(folder))
    assert code == 1 and row["clip_id"] in text and row["shard"] in text


def test_verify_reads_tars_that_others_made_and_those_of_version_1_by_their_clips(tmp_path: Path, made_shards: Path) -> None:
    write_video(tmp_path / "film.mp4", numbered_frames(24), 12.0, bframes=2)
    long = "a" * 130
    with tarfile.open(tmp_path / "train-0.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name, path in (("a.mp4", tmp_path / "film.mp4"), ("a.txt", Path(__file__)), (f"{long}.mp4", tmp_path / "film.mp4")):
            archive.add(path, name)
    index_tars(tmp_path, progress=lambda *_: None)
    assert verification(tmp_path, tmp_path) == (f"{tmp_path}: 1 shards, 2 clips (2 drawn from): the clips' bytes are as the index says", True)
    shutil.copytree(made_shards, tmp_path / "v1")
    rows = [{**row, "width": None, "height": None} for row in schemas.read_table(made_shards / INDEX_FILE, schemas.SHARD_INDEX).to_pylist()]
    schemas.write_table(schemas.table_of(schemas.SHARD_INDEX, rows), tmp_path / "v1" / INDEX_FILE, schemas.SHARD_INDEX)
    assert verification(tmp_path / "v1", tmp_path)[1]
    for folder, tar in ((tmp_path, "train-0.tar"), (tmp_path / "v1", rows[0]["shard"])):
        own = [row for row in schemas.read_table(folder / INDEX_FILE, schemas.SHARD_INDEX).to_pylist() if row["shard"] == tar]
        data = bytearray((folder / tar).read_bytes())
        data[own[-1]["offset"] + 20] ^= 1
        (folder / tar).write_bytes(data)
        (problem,) = verify_shards(folder, progress=lambda *_: None)
        assert problem.startswith(f"{tar}: {own[-1]['clip_id']}: ") and own[-1]["sha256"][:16] in problem
        (folder / tar).write_bytes(data[: own[0]["offset"]])
        assert len(verify_shards(folder, progress=lambda *_: None)) == len(own)
