"""Manifests and tars: every row and member is accounted for, with what is known of it, whatever order it came in."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import InputError, Reject
from pipelines.schemas import QUARANTINE, VIDEOS, read_table
from pipelines.sources.folder import SourceFile
from pipelines.sources.kinds import describe_source
from pipelines.sources.registry import list_sources, new_batches, read_batch, register_source, source_digest, superseded
from pipelines.store import Store
from pipelines.video.probe import build_videos, check_videos


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with open(path, "w", newline="") as handle:
        writer = csv.DictWriter(handle, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as opened:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            opened.addfile(entry, io.BytesIO(content))
    return path


def told(path: Path, **options: Any) -> str:
    return "\n".join(describe_source(path, **options).lines)


# -- manifests ---------------------------------------------------------------------------------------------------------


def test_manifest_rows_carry_their_words_into_the_videos_table(store: Store, made_clips: Path, tmp_path: Path) -> None:
    manifest = write_csv(tmp_path / "list.csv", [
        {"path": str(made_clips / "b.mp4"), "url": "http://x/b", "license": "CC0", "Author": "bea", "language": "de", "label": "wave", "views": "7"},
        {"path": str(made_clips / "a.mp4"), "url": "", "license": "", "Author": "", "language": "", "label": "", "views": ""},
        {"path": "gone.mp4", "url": "http://x/gone", "license": "", "Author": "", "language": "", "label": "", "views": ""},
    ])  # fmt: skip
    register_source(store, "own", manifest, "MIT", "me")
    assert new_batches(store) == ["own-0001"]
    batch = read_batch(store, "own-0001")
    build_videos(tmp_path, batch, workers=1)
    videos = {Path(row["path"]).name: row for row in read_table(tmp_path / "videos.parquet", VIDEOS).to_pylist()}
    kept = ("url", "licence", "uploader", "language", "label")
    assert [videos["b.mp4"][name] for name in kept] == ["http://x/b", "CC0", "bea", "de", "wave"]
    assert [videos["a.mp4"][name] for name in kept] == ["", "MIT", "me", "", ""]
    (reject,) = read_table(tmp_path / "quarantine.parquet", QUARANTINE).to_pylist()
    assert reject["path"] == str(tmp_path / "gone.mp4") and reject["code"] == Reject.UNREADABLE
    assert check_videos(tmp_path, batch)["every_file_accounted_for"].passed


def test_columns_that_are_not_kept_are_named(made_clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    monkeypatch.setattr(logging.getLogger("tubelet"), "propagate", True)
    manifest = write_csv(tmp_path / "list.csv", [{"path": str(made_clips / "a.mp4"), "views": "7", "title": "t"}])
    with caplog.at_level(logging.INFO, logger="tubelet"):
        describe_source(manifest)
    assert "columns that are not kept: views, title" in caplog.text


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["", "x", "y"])), min_size=1, max_size=7), st.randoms(use_true_random=False))
def test_order_and_format_of_a_manifest_do_not_matter_and_a_path_comes_once(
    made_clips: Path, tmp_path_factory: pytest.TempPathFactory, named: list[tuple[str, str]], random: Any
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("orders")
    rows = [{"path": f"{name}.mp4", "label": label} for name, label in named]
    shuffled = random.sample(rows, len(rows))
    pq.write_table(pa.Table.from_pylist(shuffled), folder / "list.parquet")
    tsv = folder / "list.tsv"
    tsv.write_text("path\tlabel\n" + "".join(f"{row['path']}\t{row['label']}\n" for row in shuffled))
    found = [describe_source(path, root=made_clips) for path in (write_csv(folder / "list.csv", rows), folder / "list.parquet", tsv)]
    assert found[0].files == found[1].files == found[2].files and found[0].left_out == found[1].left_out == found[2].left_out
    paths = [file.path for file in found[0].files]
    assert paths == sorted({str(made_clips / row["path"]) for row in rows})
    repeated = {name for name, _ in named if sum(name == other for other, _ in named) > 1}
    assert sum(left.count for left in found[0].left_out) == len(repeated)


def test_parquet_manifest_with_nulls_and_numbers_is_read_as_text(made_clips: Path, tmp_path: Path) -> None:
    rows = [{"path": "a.mp4", "label": 3, "licence": None, "uploader": 2.5}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "list.parquet")
    (file,) = describe_source(tmp_path / "list.parquet", root=made_clips).files
    assert (file.label, file.licence, file.uploader) == ("3", "", "2.5")


def test_row_that_is_corrected_comes_again_and_a_vanished_file_does_not(store: Store, made_clips: Path, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_bytes((made_clips / f"{name}.mp4").read_bytes())
    manifest = write_csv(tmp_path / "list.csv", [{"path": "a.mp4", "licence": "unknown"}, {"path": "b.mp4", "licence": "CC0"}])
    register_source(store, "own", manifest)
    new_batches(store)
    before = source_digest(store)
    write_csv(manifest, [{"path": "a.mp4", "licence": "CC-BY-4.0"}, {"path": "b.mp4", "licence": "CC0"}])
    assert source_digest(store) != before
    assert new_batches(store) == ["own-0002"]
    assert [(Path(file.path).name, file.licence) for file in read_batch(store, "own-0002").files] == [("a.mp4", "CC-BY-4.0")]
    assert superseded(store) == {"own-0001": [str(tmp_path / "a.mp4")]}
    (tmp_path / "b.mp4").unlink()
    assert new_batches(store) == []


@pytest.mark.parametrize(
    ("text", "problem", "found"),
    [
        ("file,label\na.mp4,x\n", "has no column path", "file, label"),
        ("", "has no column path", "nothing"),
        ("path,label\nnone.mp4,x\n", "names no file that is there", "none.mp4"),
        ("path\n", "names no file that is there", "no rows"),
        ("path\nhttps://example.org/a.mp4\n", "names no file that is there", "example.org"),
        ("path,label\na.mp4,x,y\n", "row 2 of", "3 cells"),
        ('path,label\n"a.mp4,x\n', "cannot be read as a manifest", "end of data"),
        ("path\n\x00\n", "names no file that is there", "list.csv"),
        ("path,label,Label\na.mp4,x,y\n", "more than one column label", "path, label, label"),
    ],
)
def test_bad_manifests_say_what_was_expected_and_found(tmp_path: Path, text: str, problem: str, found: str) -> None:
    path = tmp_path / "list.csv"
    path.write_text(text)
    if found == "list.csv":
        found = ""
    with pytest.raises(InputError, match=problem) as caught:
        describe_source(path, kind="manifest")
    assert found in caught.value.found and caught.value.expected and caught.value.remedy


def test_binary_file_called_csv_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "list.parquet").write_text("no parquet")
    for name in ("list.csv", "list.parquet"):
        with pytest.raises(InputError, match="cannot be read as a manifest"):
            describe_source(tmp_path / name)


def test_csv_with_an_endless_line_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\n" + "x" * 200_000)
    (tmp_path / "head.csv").write_text("x" * 200_000)
    for name in ("list.csv", "head.csv"):
        with pytest.raises(InputError, match="cannot be read as a manifest") as caught:
            describe_source(tmp_path / name)
        assert "field limit" in caught.value.found


def test_parquet_manifest_may_have_other_columns_twice_but_not_those_that_count(made_clips: Path, tmp_path: Path) -> None:
    film, path = pa.array([str(made_clips / "a.mp4")]), tmp_path / "list.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array([1]), film, pa.array([2]), pa.array(["x"])], ["views", "path", "views", "label"]), path)
    (file,) = describe_source(path).files
    assert (Path(file.path).name, file.label) == ("a.mp4", "x")
    pq.write_table(pa.Table.from_arrays([film, film], ["path", "path"]), path)
    with pytest.raises(InputError, match="more than one column path"):
        describe_source(path)


def test_rows_without_a_path_are_counted(made_clips: Path, tmp_path: Path) -> None:
    manifest = write_csv(tmp_path / "list.csv", [{"path": str(made_clips / "a.mp4"), "label": ""}, {"path": " ", "label": "x"}])
    assert "rows without a path: 1 (row 2)" in told(manifest)


# -- tars --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shards(made_clips: Path, tmp_path: Path) -> Path:
    """Two tars as video2dataset writes them: three videos, one failed download, one failure with a video, a caption."""
    folder = tmp_path / "shards"
    folder.mkdir()
    a, b, c = ((made_clips / f"{name}.mp4").read_bytes() for name in "abc")
    youtube = {"info": {"uploader": "King", "license": "Creative Commons", "language": "en"}}
    sidecar = {
        "000000000": {"url": "http://x/0", "caption": "a cat", "status": "success", "error_message": None, "yt_meta_dict": youtube},
        "000000001": {"url": "http://x/1", "status": "failed_to_download", "error_message": "gone", "key": "000000001"},
        "000000002": {"url": "http://x/2", "status": "failed_to_subsample", "error_message": "no cut"},
    }
    write_tar(folder / "00000.tar", {
        "000000000.mp4": a, "000000000.json": json.dumps(sidecar["000000000"]).encode(), "000000000.txt": b"a cat",
        "000000001.json": json.dumps(sidecar["000000001"]).encode(),
        "000000002.mp4": c, "000000002.json": json.dumps(sidecar["000000002"]).encode(),
    })  # fmt: skip
    rows = [{"key": key, "url": record["url"], "status": record["status"], "error_message": record["error_message"]} for key, record in sidecar.items()]
    rows.append({"key": "000000003", "url": "http://x/3", "status": "failed_to_download", "error_message": "private"})
    pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text("{}")
    write_tar(folder / "00001.tar", {"deep/000010000.video": b, "deep/000010000.json": b"{broken", "deep/._000010000.mp4": b"mac"})
    return folder


def test_tar_members_carry_their_sidecars_and_a_caption_is_no_label(shards: Path) -> None:
    found = describe_source(shards)
    assert found.kind == "tars"
    first, failed, second = found.files
    assert first.path == f"{shards}/00000.tar::000000000.mp4" and second.path == f"{shards}/00001.tar::deep/000010000.video"
    assert (first.url, first.uploader, first.licence, first.language, first.label) == ("http://x/0", "King", "Creative Commons", "en", "")
    assert failed.problem == "video2dataset: failed_to_subsample: no cut" and (second.url, second.problem) == ("", "")
    words = "\n".join(found.lines)
    assert "samples without a video whose download failed: 2 (00000.tar: 000000001 (video2dataset: failed_to_download: gone), 00000.tar: 000000003" in words
    assert "json sidecars that cannot be read, whose videos are taken in without: 1 (00001.tar::deep/000010000.json)" in words


def test_every_member_of_a_tar_becomes_a_row(store: Store, shards: Path, made_clips: Path, tmp_path: Path) -> None:
    register_source(store, "web", shards)
    new_batches(store)
    batch = read_batch(store, "web-0001")
    build_videos(tmp_path, batch, workers=1)
    videos = read_table(tmp_path / "videos.parquet", VIDEOS).to_pylist()
    (reject,) = read_table(tmp_path / "quarantine.parquet", QUARANTINE).to_pylist()
    assert [(row["path"].rsplit("::")[1], row["frames"]) for row in videos] == [("000000000.mp4", 60), ("deep/000010000.video", 75)]
    assert (reject["code"], reject["detail"]) == (Reject.SOURCE_PROBLEM, "video2dataset: failed_to_subsample: no cut")
    (tmp_path / "plain").mkdir()
    file = made_clips / "a.mp4"
    build_videos(tmp_path / "plain", type(batch)("p-0001", "p", (SourceFile(str(file), file.stat().st_size, 0),), "", ""), workers=1)
    (plain,) = read_table(tmp_path / "plain" / "videos.parquet", VIDEOS).to_pylist()
    assert (plain["video_id"], plain["sha256"], plain["bytes"]) == (videos[0]["video_id"], videos[0]["sha256"], videos[0]["bytes"])
    left = json.loads((store.root / "left_out" / "web.json").read_text())
    assert sum(part["count"] for part in left) == 3


def test_tar_of_webdatasets_own_writer_gives_the_samples_its_reader_gives(made_clips: Path, tmp_path: Path) -> None:
    import webdataset

    tar = tmp_path / "own.tar"
    with webdataset.TarWriter(str(tar)) as writer:
        for name in "abc":
            film = (made_clips / f"{name}.mp4").read_bytes()
            writer.write({"__key__": f"set.1/{name}", "left.mp4": film, "json": {"author": name, "label": 7}, "txt": "words"})
    read = {sample["__key__"]: len(sample["left.mp4"]) for sample in webdataset.WebDataset(str(tar), shardshuffle=False)}
    files = describe_source(tar).files
    assert {file.path.split("::")[1].removesuffix(".left.mp4"): file.bytes for file in files} == read
    assert [(file.uploader, file.label) for file in files] == [(name, "7") for name in "abc"]


def test_one_tar_is_a_source_and_a_rewritten_one_comes_again(store: Store, shards: Path, made_clips: Path) -> None:
    tar = shards / "00001.tar"
    register_source(store, "one", tar)
    assert (list_sources(store)[0].kind, new_batches(store), new_batches(store)) == ("tars", ["one-0001"], [])
    write_tar(tar, {"deep/000010000.video": (made_clips / "b.mp4").read_bytes(), "000010001.mp4": (made_clips / "c.mp4").read_bytes()})
    assert new_batches(store) == ["one-0002"] and len(read_batch(store, "one-0002").files) == 2
    assert superseded(store) == {"one-0001": [f"{tar}::deep/000010000.video"]}


def test_sidecars_that_no_table_can_hold_do_not_stop_the_source(store: Store, made_clips: Path, tmp_path: Path) -> None:
    film = (made_clips / "a.mp4").read_bytes()
    failed = b'{"status": "failed_to_subsample", "error_message": "\\ud83d"}'
    write_tar(tmp_path / "x.tar", {"0.mp4": film, "0.json": b'{"uploader": "cat \\ud83d"}', "1.mp4": film, "1.json": b"[" * 200_000, "2.mp4": film, "2.json": failed})
    register_source(store, "odd", tmp_path / "x.tar")
    (key,) = new_batches(store)
    batch = read_batch(store, key)
    assert batch.digest and [file.uploader for file in batch.files] == ["cat \\ud83d", "", ""]
    assert "sidecars that cannot be read, whose videos are taken in without: 1 (x.tar::1.json)" in told(tmp_path / "x.tar")


def test_status_of_ones_own_is_no_failure_and_failures_are_quoted(made_clips: Path, tmp_path: Path) -> None:
    film = (made_clips / "a.mp4").read_bytes()
    tar = write_tar(tmp_path / "x.tar", {"0.mp4": film, "0.json": b'{"status": "published", "author": "me"}', "1.json": b'{"status": 7}'})
    (file,) = describe_source(tar).files
    assert (file.problem, file.uploader) == ("", "me") and "samples without a video: 1 (x.tar: 1)" in told(tar)
    write_tar(tar, {"0.mp4": film, "0.json": b'{"status": "failed_to_download", "error_message": "gone"}'})
    with pytest.raises(InputError, match="no video that can be taken in") as caught:
        describe_source(tar)
    assert caught.value.found == "x.tar::0.mp4: video2dataset: failed_to_download: gone"


def test_what_lies_beside_registered_tars_is_told(store: Store, shards: Path, made_clips: Path) -> None:
    register_source(store, "web", shards)
    (shards / ".cache").mkdir()
    for name in ("loose.mp4", "notes.txt", "late.tar.gz", ".cache/x.tar.gz"):
        (shards / name).write_bytes(b"x")
    new_batches(store)
    left = {part["reason"]: part["names"] for part in json.loads((store.root / "left_out" / "web.json").read_text())}
    assert left["video files, which this kind of source does not take in"] == [str(shards / "loose.mp4")]
    assert left["compressed tars, which are not read"] == [str(shards / "late.tar.gz")] and "others ignored (1 .txt)" in left
    (shards / "late.tar.gz").unlink()
    assert len(describe_source(shards, kind="tars").files) == 3  # a compressed tar in a hidden folder is in nobody's way


def test_damaged_and_foreign_tars_among_good_ones_are_rows_with_a_reason(shards: Path) -> None:
    (shards / "00002.tar").write_text("no tar at all " * 100)
    whole = (shards / "00000.tar").read_bytes()
    (shards / "00003.tar").write_bytes(whole[: len(whole) // 2])
    problems = {Path(file.path).name: file.problem for file in describe_source(shards).files if file.problem}
    assert "cannot be read as a tar" in problems["00002.tar"] and "ends early" in problems["00003.tar"]


def test_tars_that_cannot_be_sources_say_what_to_do(made_clips: Path, tmp_path: Path) -> None:
    film = (made_clips / "a.mp4").read_bytes()
    folders = {name: tmp_path / name for name in ("compressed", "captions", "empty")}
    for folder in folders.values():
        folder.mkdir()
    with tarfile.open(folders["compressed"] / "00000.tar.gz", "w:gz") as opened:
        opened.add(made_clips / "a.mp4", "0.mp4")
    write_tar(folders["captions"] / "00000.tar", {"0.txt": b"x", "0.json": b"{}", "1.jpg": b"x"})
    with tarfile.open(tmp_path / "sly.tar", "w:gz") as opened:
        opened.add(made_clips / "a.mp4", "0.mp4")
    (tmp_path / "zero.tar").write_bytes(b"")
    for path, problem, word in [
        (folders["compressed"], "compressed tars", "gunzip"), (folders["compressed"] / "00000.tar.gz", "compressed tars", "gunzip"),
        (folders["captions"], "no video in its tars", "1 .jpg"), (tmp_path / "sly.tar", "not an uncompressed tar", "unpack"),
        (tmp_path / "none.tar", "does not exist", "tar"), (tmp_path / "zero.tar", "not an uncompressed tar", "tar"), (folders["empty"], "is empty", "folder"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=problem) as caught:
            describe_source(path)
        assert word in str(caught.value), path
    # Files of a kind that can be read come first: tars beside them are named as left out.
    (folders["captions"] / "film.mp4").write_bytes(film)
    assert "others ignored (1 .tar)" in told(folders["captions"])


def test_member_that_is_there_twice_counts_once_and_is_named(made_clips: Path, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", {"0.mp4": (made_clips / "a.mp4").read_bytes()})
    with tarfile.open(tar, "a") as opened:
        opened.add(made_clips / "b.mp4", "0.mp4")
    found = describe_source(tar)
    assert [file.bytes for file in found.files] == [(made_clips / "b.mp4").stat().st_size]
    assert any("more than once" in line and "x.tar::0.mp4" in line for line in found.lines)


# -- any kind ----------------------------------------------------------------------------------------------------------


def test_kind_is_found_out_and_can_be_said(made_clips: Path, shards: Path, tmp_path: Path) -> None:
    manifest = write_csv(tmp_path / "list.csv", [{"path": str(made_clips / "a.mp4")}])
    assert [describe_source(path).kind for path in (made_clips, shards, shards / "00000.tar", manifest)] == ["folder", "tars", "tars", "manifest"]
    with pytest.raises(InputError, match="no kind of source"):
        describe_source(made_clips, kind="zip")
    with pytest.raises(InputError, match="has no other root"):
        describe_source(made_clips, root=tmp_path)
    with pytest.raises(InputError, match="no tar"):
        describe_source(made_clips, kind="tars")
    with pytest.raises(InputError, match="is a folder"):
        describe_source(made_clips, kind="manifest")


def test_videos_that_a_folder_does_not_give_are_named(store: Store, made_clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    for folder in (root, root / ".trash", root / "shut", tmp_path / "away"):
        folder.mkdir()
    (root / "a.mp4").write_bytes((made_clips / "c.mp4").read_bytes())
    for name in (b"\xff.mp4", b".b.mp4", b".DS_Store", b"\xff.txt"):
        Path(os.fsdecode(bytes(root) + b"/" + name)).write_bytes(b"x")
    (root / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (root / "linked").symlink_to(tmp_path / "away")
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    register_source(store, "pool", root)
    (key,) = new_batches(store)
    assert [Path(file.path).name for file in read_batch(store, key).files] == ["a.mp4"]
    left = {part["reason"]: part["names"] for part in json.loads((store.root / "left_out" / "pool.json").read_text())}
    assert left == {
        "others ignored (1 .txt)": [], "names that are not UTF-8": [f"{root}/\\udcff.mp4"],
        "broken links, and files that cannot be looked at": [f"{root}/gone.mp4 (No such file or directory)"],
        "folders that cannot be listed": [f"{root}/shut (Permission denied)"], "links to folders, which are not followed": [f"{root}/linked"],
        "hidden files and folders, which are not looked at": [f"{root}/.b.mp4", f"{root}/.trash"],
    }  # fmt: skip
