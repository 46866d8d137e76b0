"""Preprocessing: geometry of every mode, one normalisation, refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.errors import ConfigError, ShapeError
from models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocess, normalise


def frames(time: int, height: int, width: int) -> Tensor:
    return torch.randint(
        0, 256, (time, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def test_same_size_is_only_normalised() -> None:
    source = frames(3, 32, 48)
    video = Preprocess(height=32, width=48)(source)
    expected = (source.double() / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    assert video.dtype == torch.float32 and video.shape == (3, 3, 32, 48)
    torch.testing.assert_close(video.double(), expected.permute(3, 0, 1, 2), atol=1e-5, rtol=0)


def test_robot_path_and_training_path_normalise_alike_and_leave_their_input_alone() -> None:
    source = frames(2, 16, 16)
    batch = source.permute(3, 0, 1, 2).unsqueeze(0).contiguous()
    before = batch.clone()
    torch.testing.assert_close(normalise(batch)[0], Preprocess(height=16, width=16)(source))
    torch.testing.assert_close(normalise(batch.float()), normalise(batch))
    assert torch.equal(batch, before)


def test_shrinking_averages_so_that_fine_texture_does_not_alias() -> None:
    stripes = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    video = Preprocess(height=16, width=16)(stripes)
    grey = normalise(torch.full((3, 1, 1, 1), 127.5))
    assert (video - grey).abs()[..., 2:-2].max() < 0.05


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (720, 1280, (0, 154, 720, 972)),
        (180, 320, (0, 38, 180, 243)),
        (256, 256, (0, 0, 256, 256)),
        (480, 640, (0, 0, 480, 640)),
        (400, 150, (100, 0, 200, 150)),
    ],
)
def test_droid_crop_is_the_box_upstream_always_takes(height: int, width: int, box: tuple[int, int, int, int]) -> None:
    assert Preprocess(height=256, width=256, mode="official_droid_crop").crop_box(height, width) == box


def test_short_side_crop_takes_the_centre_of_the_resized_frame() -> None:
    source = torch.zeros(1, 292, 500, 3, dtype=torch.uint8)
    source[:, 18 : 18 + 256, 122 : 122 + 256] = 255
    video = Preprocess(height=256, width=256, mode="short_side_crop")(source)
    assert video.shape == (3, 1, 256, 256)
    torch.testing.assert_close(video, normalise(torch.full((3, 1, 256, 256), 255.0)))


@settings(max_examples=20, deadline=None)
@given(
    height=st.integers(8, 70),
    width=st.integers(8, 70),
    mode=st.sampled_from(["squash", "short_side_crop", "official_droid_crop"]),
)
def test_every_mode_gives_the_asked_size_for_every_frame(height: int, width: int, mode: str) -> None:
    preprocess = Preprocess(height=32, width=32, mode=mode)  # type: ignore[arg-type]
    video = preprocess(frames(2, height, width))
    assert video.shape == (3, 2, 32, 32) and bool(video.isfinite().all())


def test_preprocess_survives_json() -> None:
    preprocess = Preprocess(height=96, width=128, mode="official_droid_crop", mean=(0.0, 0.0, 0.0))
    as_json = {key: list(value) if isinstance(value, tuple) else value for key, value in preprocess.to_dict().items()}
    assert Preprocess.from_dict(as_json) == preprocess


def test_wrong_frames_and_settings_are_refused() -> None:
    preprocess = Preprocess(height=32, width=32)
    with pytest.raises(ShapeError, match="uint8"):
        preprocess(torch.zeros(2, 8, 8, 3))
    with pytest.raises(ShapeError, match="frames"):
        preprocess(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ShapeError, match="channels"):
        normalise(torch.zeros(2, 8, 8, 3))
    with pytest.raises(ConfigError, match="square"):
        Preprocess(height=32, width=48, mode="short_side_crop")
    with pytest.raises(ConfigError, match="mode"):
        Preprocess(height=32, width=32, mode="stretch")  # type: ignore[arg-type]
