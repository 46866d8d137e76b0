"""Tars that others made: indexed as they are, drawn from like our own, pictures as still clips."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import webdataset
from conftest import numbered_frames

from pipelines import schemas
from pipelines.errors import InputError
from pipelines.lineage.exposure import ExposureSpec, log_disagreements
from pipelines.recipes import MixtureSource
from pipelines.shards.decode import decode_clip
from pipelines.shards.exposure_log import rows_of
from pipelines.shards.found import REJECTS, index_tars
from pipelines.shards.geometry import ClipGeometry
from pipelines.shards.index import INDEX_FILE, ShardError, ShardIndex
from pipelines.shards.loader import ClipLoader
from pipelines.shards.mixture import open_mixture
from pipelines.tombstones import Tombstones
from pipelines.video.encode import ffmpeg_binary, write_video

GEOMETRY = ClipGeometry(frames=4, fps=4, height=16, width=24)


def picture(level: int) -> bytes:
    return bytes(cv2.imencode(".jpg", np.full((40, 60, 3), level, np.uint8))[1])


def ffmpeg(*arguments: object) -> None:
    subprocess.run([ffmpeg_binary(), "-y", "-loglevel", "error", *map(str, arguments)], check=True)


def write_tar(path: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=form) as archive:
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
    replaced = 0
    for batch in loader.batches(0, 9):
        replaced += len(batch.replaced)
        for item, shown in enumerate(batch.shown):
            level = batch.video[item].float().mean(dim=(0, 2, 3)).numpy()
            if shown.shards == "theirs":
                seen.add(shown.clip_id)
                expected = float(shown.clip_id[4:]) if shown.clip_id.startswith("n01") else 20 + 3 * np.round(batch.times_s[item] * 20)
                np.testing.assert_allclose(level, expected, atol=2.5)
    assert seen == set(rows) and replaced == 0
    taken = Tombstones(video_ids=frozenset({rows["clip_1"]["video_id"]}))
    loader.exclude(taken, 9)
    assert not any(shown.clip_id == "clip_1" for batch in loader.batches(9, 14) for shown in batch.shown)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("name", ["folder/" * 20 + "clip.mp4", "видео.mp4"])
def test_names_that_need_a_header_of_their_own_are_read(theirs: Path, tmp_path: Path, name: str, form: int) -> None:
    (tmp_path / "named").mkdir()
    write_tar(tmp_path / "named" / "0.tar", {"before.jpg": picture(9), name: (tmp_path / "v.mp4").read_bytes()}, form)
    index_tars(tmp_path / "named", progress=lambda *_: None)
    index = ShardIndex(tmp_path / "named")
    found = {index.stored(index.entry(row)).name for row in range(len(index))}
    assert found == {"before.jpg", name}


def test_a_clip_cut_by_copying_has_the_frames_that_a_player_shows(tmp_path: Path) -> None:
    """Such a cut keeps the packets from the key frame before it, which the container says not to show."""
    write_video(tmp_path / "v.mp4", numbered_frames(70), 20.0, bframes=2, gop=40)
    ffmpeg("-ss", "1.3", "-i", tmp_path / "v.mp4", "-c", "copy", tmp_path / "cut.mp4")
    (tmp_path / "cuts").mkdir()
    write_tar(tmp_path / "cuts" / "0.tar", {"cut.mp4": (tmp_path / "cut.mp4").read_bytes()})
    assert index_tars(tmp_path / "cuts", progress=lambda *_: None)["rejected"] == 0
    with av.open(str(tmp_path / "cut.mp4")) as container:
        shown = [(frame.pts, round(frame.to_ndarray(format="rgb24").mean())) for frame in container.decode(video=0)]
    index = ShardIndex(tmp_path / "cuts")
    clip = decode_clip(index.read(index.entry(0)))
    assert index.frames[0] == len(shown) < 60 and index.first_s[0] == 0
    assert clip.pts.tolist() == [pts for pts, _ in shown]
    np.testing.assert_allclose([clip.frame(number).mean() for number in range(len(shown))], [level for _, level in shown], atol=2)
    window = decode_clip(index.read(index.entry(0)), np.array([0.5]))
    assert abs(window.frame(0).mean() - (20 + 3 * (26 + 10))) < 2.5


def test_avi_with_scrambled_times_and_an_empty_picture_are_rejected_and_said_so(theirs: Path, tmp_path: Path) -> None:
    ffmpeg("-i", tmp_path / "v.mp4", "-c", "copy", tmp_path / "v.avi")
    write_tar(theirs / "00002.tar", {"scrambled.avi": (tmp_path / "v.avi").read_bytes(), "empty.jpg": b""})
    assert index_tars(theirs, progress=lambda *_: None)["rejected"] == 3
    reasons = {row["path"].rpartition("::")[2]: row["detail"] for row in schemas.read_table(theirs / REJECTS, schemas.QUARANTINE).to_pylist()}
    assert "mp4 or mkv" in reasons["scrambled.avi"] and "0 other bytes" in reasons["empty.jpg"]


def test_a_log_of_uneven_frames_agrees_with_its_lineage(theirs: Path, tmp_path: Path) -> None:
    """A gap in a clip puts the nearest frame far from the instant that was drawn."""
    ffmpeg("-i", tmp_path / "v.mp4", "-vf", "select='lt(n,10)+gt(n,45)'", "-fps_mode", "vfr", tmp_path / "uneven.mp4")
    (tmp_path / "uneven").mkdir()
    write_tar(tmp_path / "uneven" / "0.tar", {"uneven.mp4": (tmp_path / "uneven.mp4").read_bytes()})
    index_tars(tmp_path / "uneven", progress=lambda *_: None)
    source = MixtureSource(name="uneven", weight=1, shards=str(tmp_path / "uneven"))
    mixture = open_mixture([source], None)
    rows = [row for batch in ClipLoader(mixture, GEOMETRY, seed=0, phase="p", global_batch=4).batches(0, 5) for row in rows_of(batch)]
    spec = ExposureSpec("p", 0, 5, 4, GEOMETRY.to_dict(), [{**source.model_dump(mode="json"), "digest": ""}])
    assert log_disagreements(mixture, spec, tmp_path, schemas.table_of(schemas.EXPOSURE_LOG, rows)) == []
    far = [row for row in rows if row["pts"] != sorted(set(row["pts"]))]
    assert far  # two instants share a frame: the gap was met
    moved = [{**row, "pts": [row["pts"][-1]] * 4} if row is far[0] else row for row in rows]
    assert log_disagreements(mixture, spec, tmp_path, schemas.table_of(schemas.EXPOSURE_LOG, moved)) == [f"pts differs in 1 samples: {far[0]['global_sample']}"]


def test_equal_keys_are_refused_and_nothing_is_written(theirs: Path) -> None:
    write_tar(theirs / "00002.tar", {"b/clip_1.jpg": picture(9)})
    with pytest.raises(InputError, match=r"clip_1.*00000\.tar and 00002\.tar"):
        index_tars(theirs, progress=lambda *_: None)
    assert not (theirs / INDEX_FILE).exists()


def test_an_index_that_is_not_finished_leaves_the_old_one(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index_tars(theirs, progress=lambda *_: None)
    before, write_before = (theirs / INDEX_FILE).read_bytes(), schemas.write_table

    def half(table: object, path: Path, schema: object) -> None:
        write_before(table, path, schema)  # type: ignore[arg-type]
        if INDEX_FILE in path.name:
            path.write_bytes(path.read_bytes()[:100])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(schemas, "write_table", half)
    with pytest.raises(OSError, match="No space"):
        index_tars(theirs, progress=lambda *_: None)
    assert (theirs / INDEX_FILE).read_bytes() == before


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
    with pytest.raises(ShardError, match="not a whole tar"):
        index_tars(theirs, progress=lambda *_: None)
