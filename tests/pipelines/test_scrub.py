"""Scrub: a sound store is found sound, each planted disagreement is found by its kind and place and nothing else is, and no damage stops it."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scrub_plants import ALONE, CLIPS, PLANTS, first, flip, forge, place, point, put, redacted, rows_changed
from scrub_world import BATCHES, Maker, read

from pipelines.errors import InputError, MissingArtefact
from pipelines.identity import file_sha256
from pipelines.lineage.scrub.finding import Kind
from pipelines.lineage.scrub.store import COMPARISONS, scrub
from pipelines.lineage.scrub.text import scrub_markdown, scrub_text
from pipelines.lineage.takedown.match import Selector
from pipelines.lineage.takedown.take_down import take_down
from pipelines.shards.verify import verification
from pipelines.store import MANIFEST, REDACTIONS, Store
from pipelines.tombstones import write_tombstones


@pytest.fixture(scope="module")
def sound(made_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a store with every stage's artefacts in it, all in agreement. Not to be changed: see `store`."""
    maker = Maker(tmp_path_factory.mktemp("scrub") / "store", made_clips)
    for key in BATCHES:
        maker.batch(key)
    maker.targets()
    maker.curation()
    maker.training()
    maker.robot()
    maker.takedown()
    return maker.store.root


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Store:
    """A private copy with linked files: what is changed must be replaced, never written into."""
    return Store(Path(shutil.copytree(sound, tmp_path / "store", copy_function=os.link)))


def test_after_a_takedown_all_agrees_but_what_is_still_drawn_until_it_is_overwritten(sound: Path, tmp_path: Path) -> None:
    store = Store.open(shutil.copytree(sound, tmp_path / "store"))
    shards = store.current("training_shards")
    take_down(store, Selector("video", "video-c"), "asked")
    assert found_in(store.root) == {Found(Kind.SERVED, place(shards, "shard_index.parquet"))}
    take_down(store, Selector("video", "video-c"), "asked", compact=True)
    assert found_in(store.root) == set()
    text, whole = verification(None, store.root)
    assert whole and "5 clips (5 drawn from), 1 taken down" in text


def test_a_sound_store_has_no_findings(sound: Path) -> None:
    found = scrub(sound)
    assert not found.findings, scrub_text(found)
    assert not found.notes, scrub_text(found)
    assert found.artefacts == 18 and found.bytes_read > 0
    assert scrub_text(found).endswith("everything agrees")
    assets = {path.name for path in (sound / "artefacts").iterdir()}
    assert all(assets >= set(comparison.assets) for comparison in COMPARISONS), "every comparison has something to compare here"


# -- what is found ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    kind: Kind
    file: str


def found_in(root: Path, **options: Any) -> set[Found]:
    return {Found(one.kind, one.file) for one in scrub(root, **options).findings}


@pytest.mark.parametrize(("kind", "do"), [pytest.param(kind, do, id=name) for name, kind, do in PLANTS])
def test_a_planted_disagreement_is_found_and_nothing_else(store: Store, kind: Kind, do: Callable[[Store], str]) -> None:
    file = do(store)
    found = scrub(store.root)
    assert {Found(one.kind, one.file) for one in found.findings} == {Found(kind, file)}, scrub_text(found)
    (finding,) = found.findings
    assert finding.expected and finding.found and finding.remedy and finding.expected != finding.found
    assert file in scrub_text(found) and kind.value in scrub_markdown(found.findings)


def test_all_planted_at_once_are_all_found(store: Store) -> None:
    planted = {Found(kind, do(store)) for name, kind, do in PLANTS if name not in ALONE}
    assert found_in(store.root) == planted and len(planted) >= 60


def test_clips_overwritten_without_a_takedown_are_named(store: Store) -> None:
    clip = read(store.current("training_shards").path, "shard_index")[0]["clip_id"]
    made, _ = redacted(store, {"clips": [clip]})
    assert Found(Kind.REDACTION, place(made, REDACTIONS)) in found_in(store.root, quick=True)
    write_tombstones(store.root, "second", [{"clip_id": clip, "video_id": "v", "takedown": "second", "rule": "video"}])
    assert not {one for one in found_in(store.root, quick=True) if one.kind is Kind.REDACTION}


def test_a_redacted_tar_is_judged_by_its_digest_of_after(store: Store) -> None:
    made = forge(store, "training_shards")
    tar = made.path / read(made.path, "shard_index")[0]["shard"]
    flip(tar)
    assert place(made, tar.name) in {one.file for one in found_in(store.root)}
    put(made.path / REDACTIONS, json.dumps({tar.name: {"sha256": file_sha256(tar), "clips": [], "takedown": "first"}}).encode())
    assert place(made, tar.name) not in {one.file for one in found_in(store.root)}


def test_a_quick_scrub_reads_tables_and_sizes_only(store: Store) -> None:
    flip(forge(store, "robot_episodes[simulated]").path / "videos" / "e0.mp4")
    short = forge(store, "world_model[nano]")
    put(short.path / "predictor.safetensors", b"")
    rows = forge(store, CLIPS, rows_changed("clips", first(splitter="another")))
    found = scrub(store.root, quick=True)
    assert {Found(one.kind, one.file) for one in found.findings} == {
        Found(Kind.MEMBER_SIZE, place(short, "predictor.safetensors")), Found(Kind.CLIP_ID, place(rows, "clips.parquet")),
    }  # fmt: skip
    assert found.bytes_read == 0 and "sizes and tables only" in scrub_text(found)


def test_only_the_assets_asked_for_are_looked_at(store: Store) -> None:
    forge(store, CLIPS, rows_changed("clips", first(splitter="another")))
    forge(store, "curated_clips", rows_changed("selection", first(weight=float("nan"))))
    point(store, "clips", "made-0002", "0" * 16, place(store.current("clips", "made-0002")))
    assert {one.kind for one in found_in(store.root, assets=["curated_clips"])} == {Kind.WEIGHTS}
    assert {one.kind for one in found_in(store.root, assets=["clips"])} == {Kind.CLIP_ID, Kind.POINTER_DIGEST}
    assert {one.kind for one in found_in(store.root, assets=["clips[made-0002]"])} == {Kind.POINTER_DIGEST}
    with pytest.raises(InputError, match=r"clips\[made-0001\]"):
        scrub(store.root, ["klips"])


def test_what_damage_kept_from_being_compared_is_said(store: Store) -> None:
    made = store.current("clips", "made-0001")
    flip(made.path / "clips.parquet")
    found = scrub(store.root)
    assert {Found(one.kind, one.file) for one in found.findings} == {Found(Kind.MEMBER_SHA256, place(made, "clips.parquet"))}
    assert any(note.artefact.startswith("distinct_clips") and "clips kept and removed not compared" in note.text for note in found.notes)
    assert "not compared" in scrub_text(found)


def test_leftovers_are_told_and_are_no_disagreement(store: Store) -> None:
    made = store.current("clips", "made-0001")
    for name, hours in (("old", 30), ("young", 0)):
        draft = made.path.with_name(f".draft-{name}-12345678")
        draft.mkdir()
        put(draft / "clips.parquet", b"half of one")
        for path in (draft / "clips.parquet", draft):
            os.utime(path, (time.time() - 3600 * hours,) * 2)
    put(made.path / f".{REDACTIONS}.0123abcd", b"{")
    put(store.root / "validated" / ("f" * 16 + ".json"), json.dumps({"asset": "clips", "partition": "gone", "digest": "f" * 16}).encode())
    found = scrub(store.root)
    assert not found.findings
    told = [(note.file, note.text) for note in found.notes]
    assert len(told) == 3 and any(".draft-old-" in file and "30.0 h" in text for file, text in told)


def test_a_folder_that_is_no_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingArtefact, match="make demo"):
        scrub(tmp_path)


# -- damage ----------------------------------------------------------------------------------------------------------

DAMAGE = {
    "nothing": b"", "half": b'{"a": [1, {"b"', "a list": b"[]", "a dict": b"{}", "null": b"null", "a number": b"1e999", "not a number": b'{"digest": NaN}',
    "not text": bytes(range(256)), "deep": b"[" * 100_000, "half a pair": b'{"\\ud800": "\\ud800"}', "twisted": b'{"exposures": {"a": 1}, "files": 7, "bundle": []}',
    "a list of lists": b"[[[]], null, {}]",
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_json_is_found_and_stops_nothing(store: Store, damage: bytes) -> None:
    """In every JSON file of the store that is no manifest, and in members whose damage is sealed: nothing but the content tells."""
    sealed_places = []
    for path in sorted(store.root.glob("artefacts/*/*/*/*.json")):
        if path.name == MANIFEST:
            continue
        asset, partition = path.relative_to(store.root / "artefacts").parts[:2]
        key = asset if partition == "_" else f"{asset}[{partition}]"
        made = forge(store, key, lambda folder, name=path.name: put(folder / name, damage))
        if path.name in ("clip_ids.json", "encoder.json", "batches.json", "lineage.json", "codebook.json"):
            sealed_places.append(place(made))
    found = scrub(store.root, quick=True)
    assert all(any(one.file.startswith(made) for one in found.findings) for made in sealed_places), scrub_text(found)
    for path in sorted(store.root.glob("**/*.json")):
        if path.name != MANIFEST:
            put(path, damage)
    found = scrub(store.root)
    assert Found(Kind.UNREADABLE, "current/clips/made-0001.json") in {Found(one.kind, one.file) for one in found.findings}
    scrub_text(found).encode()
    json.dumps(found.to_dict())


@pytest.mark.parametrize("seed", range(12))
def test_bytes_changed_at_random_never_stop_a_scrub(store: Store, seed: int) -> None:
    """In any file, manifests and tables too; what is changed in a file that a manifest covers, or in the manifest, is found."""
    draw = random.Random(seed)
    files = sorted(path for path in store.root.rglob("*") if path.is_file())
    for path in draw.sample(files, 6):
        content = bytearray(path.read_bytes())
        for _ in range(draw.randint(1, 20)):
            if content:
                content[draw.randrange(len(content))] = draw.randrange(256)
        put(path, bytes(content[: draw.randint(0, len(content))] if draw.random() < 0.3 else content))
    found = scrub(store.root, quick=draw.random() < 0.3)
    scrub_text(found).encode()
    assert found.findings or found.quick
