"""Annotation files of known data sets over a local root: what is found, in which split, and what is kept out of a pool."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import InputError
from pipelines.sources.annotated import match, read_annotated
from pipelines.sources.annotations import Annotation, seconds_of
from pipelines.sources.folder import scan_folder
from pipelines.sources.kinds import describe_source
from pipelines.sources.registry import deciding_files, list_sources, new_batches, read_batch, register_source
from pipelines.store import Store


def lay(root: Path, *names: str) -> Path:
    """Files of a few bytes: matching looks at names alone."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def summary(kind: str, annotations: Any, root: Path) -> dict[str, tuple[str, list[tuple[Any, str]]]]:
    found = read_annotated(kind, annotations, root)
    return {Path(item.file.path).relative_to(root).as_posix(): (item.split, list(item.clips)) for item in found.files}


def left(kind: str, annotations: Any, root: Path) -> list[str]:
    return [str(part) for part in read_annotated(kind, annotations, root).left_out]


def test_kinetics_tables_find_hosted_names_and_bare_ids(tmp_path: Path) -> None:
    root = lay(tmp_path / "k", "train/wave hand/-abc_000010_000020.mp4", "other/xyz.webm", "val/jump/v1_000000_000010.mp4", "test/t1_000003_000013.mp4", "stray.mp4")
    (tmp_path / "train.csv").write_text("label,youtube_id,time_start,time_end,split\nwave hand,-abc,10,20,train\njump,xyz,1,11,train\njump,nope,1,11,train\n")
    (tmp_path / "val.csv").write_text("label,youtube_id,time_start,time_end,split\njump,v1,0,10,validate\n")
    (tmp_path / "test.csv").write_text("youtube_id,time_start,time_end,split\nt1,3,13,test\n")
    assert summary("kinetics", str(tmp_path), root) == {
        "train/wave hand/-abc_000010_000020.mp4": ("train", [(None, "wave hand")]), "other/xyz.webm": ("train", [(None, "jump")]),
        "val/jump/v1_000000_000010.mp4": ("eval", [(None, "jump")]), "test/t1_000003_000013.mp4": ("eval", [(None, "")]),
    }  # fmt: skip
    assert left("kinetics", str(tmp_path), root) == [
        "videos that the annotations name and that are not there: 1 (jump/nope_000001_000011)", f"files that the annotations do not name: 1 ({root}/stray.mp4)",
    ]  # fmt: skip


@pytest.mark.parametrize("separator", [" ", ","])
def test_kinetics_710_lists_go_by_path_and_the_file_name_tells_the_split(tmp_path: Path, separator: str) -> None:
    root = lay(tmp_path / "k", "k400/train/a b/x.mp4", "k700/train/y.mp4", "k400/val/y.mp4")
    (tmp_path / "k710_train.csv").write_text(f"your_path/k400/train/a b/x.mp4{separator}325\n/elsewhere/k700/train/y.mp4{separator}7\n")
    (tmp_path / "k710_val.csv").write_text(f"your_path/k400/val/y.mp4{separator}7\n")
    wanted = {"k400/train/a b/x.mp4": ("train", [(None, "325")]), "k700/train/y.mp4": ("train", [(None, "7")]), "k400/val/y.mp4": ("eval", [(None, "7")])}
    assert summary("kinetics", str(tmp_path), root) == wanted
    (tmp_path / "mine.txt").write_text("k400/train/a b/x.mp4 0 -1\n")
    assert summary("kinetics", {"train": str(tmp_path / "mine.txt"), "validation": [str(tmp_path / "k710_val.csv")]}, root) == {
        "k400/train/a b/x.mp4": ("train", [(None, "")]), "k400/val/y.mp4": ("eval", [(None, "7")]),
    }  # fmt: skip
    with pytest.raises(InputError, match="does not tell its split"):
        summary("kinetics", str(tmp_path / "mine.txt"), root)


def test_ssv2_labels_are_templates_without_brackets_and_test_ids_are_evaluation(tmp_path: Path) -> None:
    root = lay(tmp_path / "v", "1.webm", "2.webm", "3.webm")
    entry = {"id": "1", "label": "pushing a cup", "template": "Pushing [something] from left to right", "placeholders": ["a cup"]}
    (tmp_path / "something-something-v2-train.json").write_text(json.dumps([entry]))
    (tmp_path / "something-something-v2-validation.json").write_text(json.dumps([{**entry, "id": "2"}]))
    (tmp_path / "something-something-v2-test.json").write_text(json.dumps([{"id": "3"}]))
    (tmp_path / "something-something-v2-labels.json").write_text(json.dumps({"Pushing something from left to right": "94"}))
    label = "Pushing something from left to right"
    assert summary("ssv2", str(tmp_path), root) == {
        "1.webm": ("train", [(None, label)]), "2.webm": ("eval", [(None, label)]), "3.webm": ("eval", [(None, "")]),
    }  # fmt: skip


def coin_file(path: Path, **videos: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"database": videos}))
    return path


def test_coin_segments_are_clips_with_the_class_of_the_video(tmp_path: Path) -> None:
    root = lay(tmp_path / "v", "131/LtRS.mp4", "13/other.mp4", "13/bare.mp4")
    steps = [{"id": "216", "segment": [71.0, 82.0], "label": "insert"}, {"id": "212", "segment": [60.0, 69.0], "label": "take out"}]
    common = {"duration": 131.0, "start": 56.6, "end": 85.7, "video_url": "https://www.youtube.com/embed/LtRS", "recipe_type": 131}
    file = coin_file(
        tmp_path / "COIN.json", LtRS={**common, "class": "ReplaceCDDrive", "subset": "training", "annotation": steps},
        other={**common, "recipe_type": 13, "class": "ChangeCarTire", "subset": "testing", "annotation": steps[:1]},
        bare={**common, "recipe_type": 13, "class": "ChangeCarTire", "subset": "training", "annotation": []},
    )  # fmt: skip
    assert summary("coin", str(file), root) == {
        "131/LtRS.mp4": ("train", [((60.0, 69.0), "ReplaceCDDrive"), ((71.0, 82.0), "ReplaceCDDrive")]),
        "13/other.mp4": ("eval", [((71.0, 82.0), "ChangeCarTire")]), "13/bare.mp4": ("train", [(None, "ChangeCarTire")]),
    }  # fmt: skip
    (item,) = (item for item in read_annotated("coin", str(file), root).files if item.file.path.endswith("LtRS.mp4"))
    assert (item.file.url, item.file.label) == ("https://www.youtube.com/embed/LtRS", "ReplaceCDDrive")


def test_epic_kitchens_segments_with_class_names_where_their_tables_are_there(tmp_path: Path) -> None:
    root = lay(tmp_path / "e", "P01/videos/P01_01.MP4", "P01_11.MP4", "P02/videos/P02_101.MP4")
    columns = "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,verb,verb_class,noun,noun_class\n"
    (tmp_path / "EPIC_100_train.csv").write_text(columns + "P01_01_0,P01,P01_01,00:00:00.14,00:00:03.37,open,3,door,3\nP01_01_1,P01,P01_01,01:02:03.50,01:02:04,take,0,plate,2\n")
    (tmp_path / "EPIC_100_validation.csv").write_text(columns + "P01_11_0,P01,P01_11,00:00:00.00,00:00:01.89,take,0,plate,2\n")
    (tmp_path / "EPIC_100_test_timestamps.csv").write_text("narration_id,participant_id,video_id,start_timestamp,stop_timestamp\nx,P02,P02_101,00:00:02.86,00:00:03.87\n")
    (tmp_path / "EPIC_100_verb_classes.csv").write_text("id,key,instances,category\n0,take,\"['take']\",x\n3,open,\"['open']\",x\n")
    (tmp_path / "EPIC_100_video_info.csv").write_text("video_id,duration\n")
    assert summary("epic_kitchens", str(tmp_path), root) == {
        "P01/videos/P01_01.MP4": ("train", [((0.14, 3.37), "open noun 3"), ((3723.5, 3724.0), "take noun 2")]),
        "P01_11.MP4": ("eval", [((0.0, 1.89), "take noun 2")]), "P02/videos/P02_101.MP4": ("eval", [((2.86, 3.87), "")]),
    }  # fmt: skip


def test_yt_temporal_ids_in_every_form(tmp_path: Path) -> None:
    root = lay(tmp_path / "yt", "-a.b.mp4", "deep/B.mkv", "C.mp4", "D.mp4", "E.mp4")
    (tmp_path / "yttemporal1b_ids_val.csv").write_text("video_id,channel\nE,x\n")
    with gzip.open(tmp_path / "yttemporal1b_train_0000of1024.jsonl.gz", "wt") as handle:
        handle.write('{"id": "-a.b", "subtitles": []}\n{"info": {"id": "B"}}\n"C"\n')
    (tmp_path / "train_ids.txt").write_text("D\n\nabsent\n")
    found = summary("yt_temporal_1b", str(tmp_path), root)
    assert {name: split for name, (split, _) in found.items()} == {"-a.b.mp4": "train", "deep/B.mkv": "train", "C.mp4": "train", "D.mp4": "train", "E.mp4": "eval"}


def test_evaluation_videos_are_kept_out_of_a_pool_and_listed(tmp_path: Path) -> None:
    root = lay(tmp_path / "v", "1.webm", "2.webm", "4.webm")
    (tmp_path / "ssv2-train.json").write_text(json.dumps([{"id": "1", "template": "Pushing [something]"}, {"id": "9"}]))
    (tmp_path / "ssv2-validation.json").write_text(json.dumps([{"id": "2", "template": "Pushing [something]"}]))
    store = Store.open(tmp_path / "store")
    register_source(store, "ssv2", tmp_path, "research only", "twentybn", kind="ssv2", root=root)
    assert new_batches(store) == ["ssv2-0001"] and new_batches(store) == []
    (file,) = read_batch(store, "ssv2-0001").files
    assert (Path(file.path).name, file.label) == ("1.webm", "Pushing something")
    listed = {part["reason"]: part["names"] for part in json.loads((store.root / "left_out" / "ssv2.json").read_text())}
    assert listed["evaluation videos, kept out of the pool"] == [str(root / "2.webm")]
    assert listed["videos that the annotations name and that are not there"] == ["9"]
    (source,) = list_sources(store)
    assert {Path(file.path).name for file in deciding_files(source)} == {"ssv2-train.json", "ssv2-validation.json", "1.webm", "2.webm", "4.webm"}
    assert "evaluation videos, kept out of the pool: 1" in "\n".join(describe_source(tmp_path, "ssv2", root).lines)


def test_files_beside_the_videos_are_told_and_half_a_character_is_spelled_out(tmp_path: Path) -> None:
    root = lay(tmp_path / "v", "1.webm", "readme.txt", ".hidden/2.webm")
    (tmp_path / "train.json").write_text('[{"id": "1", "template": "cat \\ud83d"}]')
    found = describe_source(tmp_path, "ssv2", root)
    assert [file.label for file in found.files] == ["cat \\ud83d"]
    assert list(map(str, found.left_out)) == ["others ignored (1 .txt): 1", f"hidden files and folders, which are not looked at: 1 ({root}/.hidden)"]


def test_file_in_both_splits_is_evaluation_and_told(tmp_path: Path) -> None:
    root = lay(tmp_path / "v", "1.webm")
    for split, label in (("train", "a"), ("validation", "b")):
        (tmp_path / f"{split}.json").write_text(json.dumps([{"id": 1, "template": label}]))
    assert summary("ssv2", str(tmp_path), root) == {"1.webm": ("eval", [(None, "a")])}
    assert [line.split(" (")[0] for line in left("ssv2", str(tmp_path), root)] == [
        "files in both splits, which count as evaluation: 1", "files with two labels for one span, of which the first by name counts: 1",
    ]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["train", "eval"]), st.sampled_from(["", "x", "y"])), max_size=12), st.randoms(use_true_random=False))
def test_order_of_entries_does_not_matter(tmp_path_factory: pytest.TempPathFactory, named: list[tuple[int, str, str]], random: Any) -> None:
    root = tmp_path_factory.getbasetemp() / "ordered"
    if not root.exists():
        lay(root, "a/0.mp4", "b/0.mp4", "1.mp4", "2.mp4", "3.mp4")
    files, _ = scan_folder(root)
    entries = [Annotation((f"b/{number}",), split, label) for number, split, label in named]
    found, again = match(entries, files, root), match(random.sample(entries, len(entries)), files, root)
    assert found.files == again.files
    named_there = {number for number, _, _ in named if number <= 3}
    assert {int(Path(item.file.path).stem) for item in found.files} == named_there
    for item in found.files:
        own = {split for number, split, _ in named if number == int(Path(item.file.path).stem)}
        assert item.split == ("eval" if "eval" in own else "train") and len(item.clips) == 1


def test_annotations_that_fit_nothing_name_what_was_looked_for_and_what_is_there(tmp_path: Path) -> None:
    root = lay(tmp_path / "v", "x.mp4", "y.mp4")
    (tmp_path / "train.json").write_text(json.dumps([{"id": str(number)} for number in range(5)]))
    with pytest.raises(InputError, match="fit no video") as caught:
        describe_source(tmp_path / "train.json", "ssv2", root)
    assert "0, 1, 2" in caught.value.expected and "x.mp4, y.mp4" in caught.value.found and caught.value.remedy


def test_bad_annotations_are_refused_in_words(tmp_path: Path) -> None:
    root = lay(tmp_path / "v", "1.webm")
    lay(tmp_path / "none", "readme.md")
    (tmp_path / "val.json").write_text(json.dumps([{"id": "1"}]))
    (tmp_path / "train.json").write_text("[1, 2")
    (tmp_path / "COIN.json").write_text(json.dumps({"database": {"1": {"subset": "elsewhere", "class": "x"}}}))
    (tmp_path / "EPIC_100_train.csv").write_text("video_id,start_timestamp,stop_timestamp\n1,soon,later\n")
    (tmp_path / "train.csv").write_text("label,youtube_id,time_start,time_end,split\n\x00x,1,0,10,everything\n")
    (tmp_path / "deep_train.json").write_text("[" * 200_000)
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(b'{"id": "1"}\n')[:-9])
    for name, kind, problem in [
        ("train.json", "ssv2", "no annotation file of ssv2"), ("COIN.json", "coin", "names an unknown split"), ("COIN.json", "ssv2", "does not tell its split"),
        ("EPIC_100_train.csv", "epic_kitchens", "no annotation file of epic_kitchens"), ("train.csv", "epic_kitchens", "no annotation file"),
        ("train.csv", "kinetics", "unknown split"), ("train.jsonl.gz", "yt_temporal_1b", "no annotation file"), ("none", "ssv2", "has no annotation file"),
        ("missing.json", "ssv2", "does not exist"), ("deep_train.json", "ssv2", "no annotation file of ssv2"), ("val.json", "ssv2", "leave no video for a pool"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=problem) as caught:
            describe_source(tmp_path / name, kind, root)
        assert caught.value.expected and caught.value.remedy, name
    with pytest.raises(InputError, match="looks like annotations of kinetics"):
        describe_source(tmp_path / "train.csv")
    with pytest.raises(InputError, match="is not a folder"):
        describe_source(tmp_path / "val.json", "ssv2", tmp_path / "nowhere")


def test_epic_timestamps_are_seconds() -> None:
    assert (seconds_of("00:00:00.14"), seconds_of("01:02:03.5")) == (0.14, 3723.5)


@pytest.mark.skipif("TUBELET_SHARED" not in os.environ, reason="TUBELET_SHARED is not set: no shared data")
def test_shared_sign_language_clips_as_a_labelled_list(tmp_path: Path) -> None:
    root = Path(os.environ["TUBELET_SHARED"]) / "data" / "intel-sample-videos"
    names = sorted(path.name for path in (root / "asl_gestures").glob("*.mkv"))
    (tmp_path / "asl_train.txt").write_text("".join(f"asl_gestures/{name} {number}\n" for number, name in enumerate(names[:10])))
    (tmp_path / "asl_val.txt").write_text("".join(f"asl_gestures/{name} {number}\n" for number, name in enumerate(names[10:])))
    found = describe_source(tmp_path, "kinetics", root)
    assert [Path(file.path).name for file in found.files] == names[:10] and [file.label for file in found.files] == [str(number) for number in range(10)]
    assert [part.count for part in found.left_out[:2]] == [4, 2]
