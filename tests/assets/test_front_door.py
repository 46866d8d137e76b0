"""The command line: what it needs, and what it says when something is wrong."""

import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from assets.curate import CurateOptions, configs_of, parse_options, take_in
from assets.demo import DemoOptions, insist_on_a_video, prepare_sources, source_name
from assets.interface import insist_on_free
from assets.sources import VideosConfig
from pipelines.errors import InputError, Reject
from pipelines.identity import file_sha256
from pipelines.schemas import QUARANTINE, VIDEOS, table_of, write_table
from pipelines.sources import registry
from pipelines.store import Store
from pipelines.video.encode import write_video

REPOSITORY = Path(__file__).resolve().parents[2]


def tubelet(*arguments: str, store: Path, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TUBELET_STORE": str(store), "PYTHONWARNINGS": "ignore", "COLUMNS": "200"}
    command = [sys.executable, *options, str(REPOSITORY / "tubelet.py"), *arguments]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=120)


def test_doctor_needs_the_standard_library_only(tmp_path: Path) -> None:
    # -I -S: no site-packages at all, as on a machine where nothing is installed yet.
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); sys.argv = ['tubelet.py', 'doctor']; import tubelet; tubelet.main()"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "missing: torch" in done.stdout and "make demo" in done.stdout


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda root: (root / "STORE.json").write_text('{"version": 99}'), "another version"),
        (lambda root: (root / "holiday.txt").write_text("mine"), "holds other files"),
    ],
)
def test_store_that_is_not_ours_is_refused_with_a_remedy(tmp_path: Path, prepare, words: str) -> None:
    prepare(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    done = tubelet("demo", store=tmp_path)
    assert done.returncode == 2 and words in done.stderr and "TUBELET_STORE" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_unknown_recipe_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    done = tubelet("demo", "--recipe", "giant", store=tmp_path / "store")
    assert done.returncode == 2 and "no recipe giant" in done.stderr and "nano" in done.stderr
    assert not (tmp_path / "store").exists()


def test_reading_commands_do_not_make_a_store(tmp_path: Path) -> None:
    for command in ("lineage", "report"):
        done = tubelet(command, store=tmp_path / "none")
        assert done.returncode == 2 and "make demo" in done.stderr, (command, done.stderr)
    assert not (tmp_path / "none").exists()


def test_port_in_use_is_said_with_another_one_to_take(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=r"make ui PORT="):
            insist_on_free(port)
        done = tubelet("ui", "--port", str(port), store=tmp_path / "store")
    assert done.returncode == 2 and f"port {port}" in done.stderr


def test_folder_without_one_decodable_video_is_refused_and_named(tmp_path: Path) -> None:
    (tmp_path / "story.mp4").write_text("once upon a time")
    with pytest.raises(InputError, match=r"story\.mp4"):
        insist_on_a_video(Store.open(tmp_path / "store"), tmp_path)


def test_manifest_and_tar_with_a_video_that_plays_are_taken(tmp_path: Path) -> None:
    write_video(tmp_path / "film.mp4", np.random.default_rng(0).integers(0, 255, (6, 48, 64, 3), dtype=np.uint8), 10)
    (tmp_path / "text.mp4").write_text("no film")
    (tmp_path / "My list.csv").write_text("path\ntext.mp4\nfilm.mp4\n")
    with tarfile.open(tmp_path / "good.tar", "w") as opened, tarfile.open(tmp_path / "bad.tar", "w") as bad:
        opened.add(tmp_path / "film.mp4", "0.mp4")
        bad.add(tmp_path / "text.mp4", "0.mp4")
    store = Store.open(tmp_path / "store")
    for name in ("My list.csv", "good.tar"):
        insist_on_a_video(store, tmp_path / name)
    with pytest.raises(InputError, match=r"bad\.tar::0\.mp4: not_a_video"):
        insist_on_a_video(store, tmp_path / "bad.tar")
    assert [source_name(store, tmp_path / name) for name in ("My list.csv", "good.tar")] == ["my-list", "good"]


def make_probe(store: Store, key: str, rejected: list[dict]) -> None:
    """An accepted probe of a batch without any video."""

    def build(folder: Path) -> dict:
        write_table(table_of(QUARANTINE, rejected), folder / "quarantine.parquet", QUARANTINE)
        write_table(table_of(VIDEOS, []), folder / "videos.parquet", VIDEOS)
        return {"videos": 0}

    store.accept(store.produce("videos", build, partition=key), {})


def test_poison_is_not_opened_to_see_whether_a_folder_has_a_video(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    write_video(tmp_path / "film.mp4", np.random.default_rng(0).integers(0, 255, (6, 48, 64, 3), dtype=np.uint8), 10)
    make_probe(store, "old-0001", [{"path": "x", "code": "timeout", "attempts": 4, "poison": True, "sha256": file_sha256(tmp_path / "film.mp4")}])
    with pytest.raises(InputError, match=r"film\.mp4: poison"):
        insist_on_a_video(store, tmp_path)


def test_source_that_has_batches_is_not_opened_again_and_keeps_what_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, root = Store.open(tmp_path / "store"), tmp_path / "mine"
    root.mkdir()
    (root / "film.mp4").write_bytes(b"film")
    registry.register_source(store, "mine", root, "CC0", "me")
    registry.new_batches(store)
    monkeypatch.setattr("pipelines.video.workers.Crew", None)  # no worker can be had
    monkeypatch.setattr("assets.demo.register_corpus", lambda *_: None)
    take_in(store, CurateOptions(store.root, root))
    prepare_sources(store, DemoOptions(store.root, root))
    assert [(source.licence, source.uploader) for source in registry.list_sources(store)] == [("CC0", "me")]
    take_in(store, CurateOptions(store.root, root, uploader="them"))
    assert [(source.licence, source.uploader) for source in registry.list_sources(store)] == [("CC0", "them")]


def test_poison_is_lifted_by_an_option_of_curate(tmp_path: Path) -> None:
    store, root = Store.open(tmp_path / "store"), tmp_path / "mine"
    root.mkdir()
    (root / "film.mp4").write_bytes(b"film")
    registry.register_source(store, "mine", root)
    registry.new_batches(store)
    make_probe(store, "mine-0001", [{"path": str(root / "film.mp4"), "code": Reject.TIMEOUT, "attempts": 4, "poison": True, "sha256": "x"}])
    take_in(store, CurateOptions(store.root))
    assert registry.list_batches(store) == ["mine-0001"]
    take_in(store, CurateOptions(store.root, retry_poison=True))
    assert registry.list_batches(store) == ["mine-0001", "mine-0002"]


def test_single_values_reach_the_probe_and_bad_ones_are_told() -> None:
    options = parse_options(["videos.timeout_s=120", "videos.workers=4"])
    assert configs_of(CurateOptions(Path("store"), options=options))["videos"] == VideosConfig(timeout_s=120.0, workers=4)
    for text, words in [("videos.timeout_s=0", "timeout_s"), ("videos.patience=9", "patience"), ("film.x=1", "one of videos, scenes")]:
        with pytest.raises(InputError, match=words):
            configs_of(CurateOptions(Path("store"), options=parse_options([text])))
    with pytest.raises(InputError, match=r"selection.video_max=\[ cannot be read"):
        parse_options(["selection.video_max=["])


def test_two_folders_of_one_name_are_two_sources(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    first, second = tmp_path / "a" / "My Videos", tmp_path / "b" / "My Videos"
    for folder in (first, second):
        folder.mkdir(parents=True)
        (folder / "x.mp4").write_bytes(b"x")
    registry.register_source(store, source_name(store, first), first)
    assert source_name(store, first) == "my-videos"
    assert source_name(store, second).startswith("my-videos-")


def test_ctrl_c_before_the_first_run_says_how_to_go_on(tmp_path: Path) -> None:
    store = tmp_path / "store"
    environment = {**os.environ, "TUBELET_STORE": str(store), "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "tubelet.py"), "demo", "--recipe", "smoke"], cwd="/", env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (store / "corpus").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=60)
    assert process.returncode == 130 and "run make demo again" in words, words
