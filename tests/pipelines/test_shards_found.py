"""Tars that others made: indexed as they are, drawn from like our own, pictures as still clips."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset
from conftest import numbered_frames

from pipelines import schemas
from pipelines.errors import InputError
from pipelines.recipes import MixtureSource
from pipelines.shards.found import REJECTS, index_tars
from pipelines.shards.geometry import ClipGeometry
from pipelines.shards.index import INDEX_FILE, ShardError
from pipelines.shards.loader import ClipLoader
from pipelines.shards.mixture import open_mixture
from pipelines.tombstones import Tombstones
from pipelines.video.encode import write_video

GEOMETRY = ClipGeometry(frames=4, fps=4, height=16, width=24)


def picture(level: int) -> bytes:
    return bytes(cv2.imencode(".jpg", np.full((40, 60, 3), level, np.uint8))[1])


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Two tars as video2dataset or ImageNet's converters leave them: videos with B-frames, pictures, labels, and one broken member."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    write_video(tmp_path / "v.mp4", numbered_frames(60), 20.0, bframes=2, gop=40)
    video = (tmp_path / "v.mp4").read_bytes()
    write_tar(folder / "00000.tar", {"a/clip_1.mp4": video, "a/clip_1.json": b"{}", "broken.mp4": video[:200]})
    write_tar(folder / "00001.tar", {f"n01_{level}.jpg": picture(level) for level in (60, 120)} | {"n01_60.cls": b"3"})
    return folder


def test_their_tars_are_drawn_from_as_they_are(theirs: Path, made_shards: Path) -> None:
    made = index_tars(theirs, source="theirs", licence="CC-BY-4.0", uploader="them", progress=lambda *_: None)
    assert made == {"clips": 3, "pictures": 2, "rejected": 1, "tars": 2}
    rejected = schemas.read_table(theirs / REJECTS, schemas.QUARANTINE).to_pylist()
    assert [row["path"] for row in rejected] == [f"{theirs}/00000.tar::broken.mp4"] and rejected[0]["detail"]
    rows = {row["clip_id"]: row for row in schemas.read_table(theirs / INDEX_FILE, schemas.SHARD_INDEX).to_pylist()}
    assert rows["clip_1"]["frames"] == 60 and rows["clip_1"]["source_end_s"] == pytest.approx(3.0) and rows["n01_60"]["frames"] == 1
    by_webdataset = {item["__key__"].rpartition("/")[2]: item for item in webdataset.WebDataset(sorted(map(str, theirs.glob("*.tar"))), shardshuffle=False)}
    assert set(rows) <= set(by_webdataset)
    mixture = open_mixture([MixtureSource(name="own", weight=1), MixtureSource(name="theirs", weight=1, shards=str(theirs))], made_shards)
    loader = ClipLoader(mixture, GEOMETRY, seed=0, phase="p", global_batch=8)
    seen: set[str] = set()
    for batch in loader.batches(0, 9):
        for item, shown in enumerate(batch.shown):
            level = batch.video[item].float().mean(dim=(0, 2, 3)).numpy()
            if shown.shards == "theirs":
                seen.add(shown.clip_id)
                expected = float(shown.clip_id[4:]) if shown.clip_id.startswith("n01") else 20 + 3 * np.round(batch.times_s[item] * 20)
                np.testing.assert_allclose(level, expected, atol=2.5)
    assert seen == set(rows) and not loader.replacements
    taken = Tombstones(video_ids=frozenset({rows["clip_1"]["video_id"]}))
    loader.exclude(taken, 9)
    assert not any(shown.clip_id == "clip_1" for batch in loader.batches(9, 14) for shown in batch.shown)


def test_equal_keys_are_refused_and_nothing_is_written(theirs: Path) -> None:
    write_tar(theirs / "00002.tar", {"b/clip_1.jpg": picture(9)})
    with pytest.raises(InputError, match=r"clip_1.*00000\.tar and 00002\.tar"):
        index_tars(theirs, progress=lambda *_: None)
    assert not (theirs / INDEX_FILE).exists()


def test_what_cannot_be_indexed_says_why(theirs: Path, made_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no tars"):
        index_tars(tmp_path / "empty")
    with pytest.raises(InputError, match="index of our own writer"):
        index_tars(made_shards)
    write_tar(tmp_path / "empty" / "labels.tar", {"a.json": json.dumps({}).encode()})
    with pytest.raises(ShardError, match="can be used"):
        index_tars(tmp_path / "empty", progress=lambda *_: None)
    tar = theirs / "00000.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(ShardError, match="not a whole uncompressed tar"):
        index_tars(theirs, progress=lambda *_: None)
