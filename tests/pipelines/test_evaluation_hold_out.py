"""Holding out: a tenth of a person's own videos that decode, the same ones tomorrow."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import InputError
from pipelines.evaluation.hold_out import FEWEST, TRAIN, hold_out
from pipelines.sources.target_sets import read_targets_root
from pipelines.video.encode import write_video


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own_videos")
    random = np.random.default_rng(0)
    for number in range(13):
        write_video(folder / f"film{number}.mp4", random.integers(0, 255, (6, 32, 48, 3), dtype=np.uint8), 10)
    for number in range(3):
        (folder / f"text{number}.mp4").write_text("no film")
    return folder


def held_out(targets: Path) -> dict[str, list[str]]:
    return {part.split: sorted(Path(path).name for path in part.files) for part in read_targets_root(targets)}


def test_held_out_videos_decode_and_stay_the_same_when_others_arrive(videos: Path, tmp_path: Path) -> None:
    before = held_out(hold_out(tmp_path, videos))
    assert len(before["eval"]) == FEWEST and len(before["train"]) == TRAIN
    assert not set(before["eval"]) & set(before["train"]) and not any(name.startswith("text") for names in before.values() for name in names)
    late = videos / "late.mp4"
    late.write_bytes((videos / "film0.mp4").read_bytes())
    assert held_out(hold_out(tmp_path, videos)) == before
    late.unlink()
    gone = videos / before["eval"][0]
    content = gone.read_bytes()
    gone.unlink()
    after = held_out(hold_out(tmp_path, videos))["eval"]
    gone.write_bytes(content)
    assert gone.name not in after and len(after) == FEWEST


def test_members_of_tars_can_be_held_out(videos: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "films.tar", "w") as opened:
        for path in sorted(videos.glob("film*.mp4")):
            opened.add(path, path.name)
    found = held_out(hold_out(tmp_path / "out", tmp_path / "films.tar"))
    assert len(found["eval"]) == FEWEST and all(name.startswith("films.tar::film") for name in found["eval"])


def test_too_few_videos_are_refused_with_another_way(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    for number in range(5):
        (tmp_path / "few" / f"{number}.mp4").write_bytes((videos / f"film{number}.mp4").read_bytes())
    with pytest.raises(InputError, match="too few videos") as told:
        hold_out(tmp_path / "out", tmp_path / "few")
    assert "--targets" in told.value.remedy and not (tmp_path / "out").exists()
