"""Preprocessing: geometry of every mode, one normalisation, refusals."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.errors import ConfigError, ShapeError
from models.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocess,
    centred_box,
    crop_and_resize,
    normalise,
    training_box,
)


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
    assert centred_box(height, width, (0.75, 1.35)) == box
    droid = Preprocess(height=32, width=32, mode="official_droid_crop")
    given = Preprocess(height=32, width=32, mode="random_resized_crop")
    source = frames(1, height, width)
    assert torch.equal(droid(source), given(source, box))


def test_droid_crop_is_where_the_official_scale_range_always_ends() -> None:
    drawn = [0.5] * 22
    assert training_box(720, 1280, drawn, scale=(1.777, 1.777)) == (0, 154, 720, 972)
    assert training_box(180, 320, drawn, scale=(1.777, 1.777)) == (0, 38, 180, 243)


@pytest.mark.parametrize(
    ("height", "width", "left"),
    [(292, 500, 122), (292, 519, 132), (292, 517, 130), (292, 293, 18)],  # margins of 244, 263, 261 and 37 px
)
def test_short_side_crop_takes_the_official_centre_of_the_resized_frame(height: int, width: int, left: int) -> None:
    source = frames(1, height, width)
    video = Preprocess(height=256, width=256, mode="short_side_crop")(source)
    expected = source[:, 18 : 18 + 256, left : left + 256]
    assert torch.equal(video, normalise(expected.permute(3, 0, 1, 2).contiguous()))
    turned = Preprocess(height=256, width=256, mode="short_side_crop")(source.transpose(1, 2))
    assert torch.equal(turned, video.transpose(-1, -2))


@pytest.mark.parametrize(("height", "width", "step"), [(32, 57, 12), (57, 32, 12), (32, 32, 0)])
def test_spatial_views_step_along_the_long_side(height: int, width: int, step: int) -> None:
    source = frames(2, height, width)
    views = Preprocess(height=32, width=32).spatial_views(source)
    assert views.shape == (3, 3, 2, 32, 32)
    for number, view in enumerate(views):
        top, left = (number * step, 0) if height > width else (0, number * step)
        cut = source[:, top : top + 32, left : left + 32]
        assert torch.equal(view, normalise(cut.permute(3, 0, 1, 2).contiguous()))


def test_spatial_views_resize_the_short_side_to_the_view() -> None:
    views = Preprocess(height=16, width=16).spatial_views(frames(1, 32, 64), count=2)
    squashed = Preprocess(height=16, width=32)(frames(1, 32, 64))
    torch.testing.assert_close(torch.cat(list(views), dim=-1), squashed)


@pytest.mark.parametrize("box", [(0, 0, 40, 60), (5, 7, 31, 29), (10, 20, 8, 9)])
def test_training_crop_without_filter_is_what_the_loader_cuts(box: tuple[int, int, int, int]) -> None:
    """The shard loader resizes with OpenCV, which rounds to whole grey levels."""
    source = frames(2, 40, 60)
    top, left, height, width = box
    found = crop_and_resize(source.permute(0, 3, 1, 2), box, (24, 24), antialias=False)
    for frame, picture in zip(found, source.numpy(), strict=True):
        cut = np.ascontiguousarray(picture[top : top + height, left : left + width])
        expected = cv2.resize(cut, (24, 24), interpolation=cv2.INTER_LINEAR)
        assert np.abs(frame.permute(1, 2, 0).numpy() - expected).max() < 1.0
    video = Preprocess(height=24, width=24, mode="random_resized_crop", antialias=False)(source, box)
    torch.testing.assert_close(video, normalise(found.transpose(0, 1)))


@settings(max_examples=50, deadline=None)
@given(
    uniforms=st.lists(st.floats(0, 1, exclude_max=True), min_size=22, max_size=22),
    height=st.integers(1, 500),
    width=st.integers(1, 500),
    scale=st.sampled_from([(0.3, 1.0), (0.08, 1.0), (1.777, 1.777)]),
    aspect=st.sampled_from([(0.75, 1.35), (1.0, 1.0), (2.0, 3.0)]),
)
def test_training_box_lies_in_the_frame(
    uniforms: list[float], height: int, width: int, scale: tuple[float, float], aspect: tuple[float, float]
) -> None:
    top, left, tall, wide = training_box(height, width, uniforms, scale, aspect)
    assert 0 <= top <= top + tall <= height and 0 <= left <= left + wide <= width and min(tall, wide) >= 1


def test_without_the_filter_shrinking_aliases_as_in_upstream_training() -> None:
    stripes = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    stripes[:, :, 1::4] = 255
    stripes[:, :, 2::4] = 255
    aliased = Preprocess(height=16, width=16, antialias=False)(stripes)
    torch.testing.assert_close(aliased, normalise(torch.full((3, 1, 16, 16), 255.0)))
    filtered = Preprocess(height=16, width=16)(stripes)
    grey = normalise(torch.full((3, 1, 1, 1), 127.5))
    assert (filtered - grey).abs()[..., 2:-2].max() < 0.05


def test_the_filter_changes_nothing_when_enlarging() -> None:
    small = frames(2, 12, 20)
    filtered, plain = (Preprocess(height=32, width=32, antialias=choice)(small) for choice in (True, False))
    torch.testing.assert_close(filtered, plain)


def test_one_image_is_a_clip_of_one_frame() -> None:
    preprocess = Preprocess(height=16, width=16)
    picture = frames(1, 20, 30)
    assert torch.equal(preprocess(picture[0]), preprocess(picture))


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
    preprocess = Preprocess(height=96, width=128, mode="official_droid_crop", antialias=False, mean=(0.0, 0.0, 0.0))
    as_json = {key: list(value) if isinstance(value, tuple) else value for key, value in preprocess.to_dict().items()}
    assert Preprocess.from_dict(as_json) == preprocess
    assert Preprocess.from_dict(
        {"height": 96, "width": 128, "mode": "squash"}
    ).antialias  # written before the field was


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
    with pytest.raises(ShapeError, match="needs a crop box"):
        Preprocess(height=32, width=32, mode="random_resized_crop")(frames(1, 40, 40))
    with pytest.raises(ShapeError, match="chooses its own"):
        preprocess(frames(1, 40, 40), (0, 0, 8, 8))
    with pytest.raises(ShapeError, match="40 x 50"):
        crop_and_resize(torch.zeros(1, 3, 40, 50), (30, 0, 11, 50), (8, 8))
    with pytest.raises(ShapeError, match="22"):
        training_box(40, 50, [0.5, 0.5])
    with pytest.raises(ConfigError, match="views"):
        Preprocess(height=32, width=48).spatial_views(frames(1, 40, 50))
