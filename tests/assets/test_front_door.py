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

from assets.demo import insist_on_a_video, source_name
from assets.interface import insist_on_free
from pipelines.errors import InputError
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
        insist_on_a_video(tmp_path)


def test_manifest_and_tar_with_a_video_that_plays_are_taken(tmp_path: Path) -> None:
    write_video(tmp_path / "film.mp4", np.random.default_rng(0).integers(0, 255, (6, 48, 64, 3), dtype=np.uint8), 10)
    (tmp_path / "text.mp4").write_text("no film")
    (tmp_path / "My list.csv").write_text("path\ntext.mp4\nfilm.mp4\n")
    with tarfile.open(tmp_path / "good.tar", "w") as opened, tarfile.open(tmp_path / "bad.tar", "w") as bad:
        opened.add(tmp_path / "film.mp4", "0.mp4")
        bad.add(tmp_path / "text.mp4", "0.mp4")
    for name in ("My list.csv", "good.tar"):
        insist_on_a_video(tmp_path / name)
    with pytest.raises(InputError, match=r"bad\.tar::0\.mp4: not_a_video"):
        insist_on_a_video(tmp_path / "bad.tar")
    store = Store.open(tmp_path / "store")
    assert [source_name(store, tmp_path / name) for name in ("My list.csv", "good.tar")] == ["my-list", "good"]


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
