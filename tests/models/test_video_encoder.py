"""Encoder: packing, masking, images, precision and refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.encoder import ENCODER_SIZES, EncoderConfig, VideoEncoder, encode_frames, layer_norm_features
from models.errors import ConfigError, ShapeError, TubeletError
from models.layers import causal_spans
from models.rope import grid_positions, position_tables, rotate

CONFIG = EncoderConfig(embed_dim=32, depth=2, num_heads=2, img_size=(32, 32), num_frames=4, init_std=0.2)
TOKENS = 8


@pytest.fixture(scope="module")
def encoder() -> VideoEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VideoEncoder(CONFIG)


@pytest.fixture(scope="module")
def video() -> Tensor:
    return torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))


def ids(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)


def test_keeping_every_token_equals_the_full_forward_and_dropping_one_does_not(
    encoder: VideoEncoder, video: Tensor
) -> None:
    full = encoder(video)
    everything = torch.arange(TOKENS).expand(2, -1)
    torch.testing.assert_close(encoder(video, everything), full, atol=1e-5, rtol=0)
    kept = encoder(video, everything[:, :-1])
    assert (kept - full[:, :-1]).abs().max() > 1e-3


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(TOKENS)), first=st.integers(1, TOKENS), second=st.integers(1, TOKENS))
def test_order_of_tokens_and_groups_does_not_matter_and_packed_equals_alone(
    encoder: VideoEncoder, video: Tensor, order: list[int], first: int, second: int
) -> None:
    shuffled = torch.tensor(order).expand(2, -1)
    groups = [shuffled[:, :first], shuffled[:, -second:]]
    packed = encoder(video, groups)
    swapped = encoder(video, groups[::-1])
    for group, tokens, mirrored in zip(groups, packed, swapped[::-1], strict=True):
        torch.testing.assert_close(tokens, mirrored, atol=1e-5, rtol=0)
        ascending = group.sort(dim=1).values
        alone = encoder(video, ascending)
        rows = torch.searchsorted(ascending, group.contiguous())
        torch.testing.assert_close(tokens, alone[torch.arange(2)[:, None], rows], atol=1e-5, rtol=0)


def test_gradients_of_packed_groups_equal_those_of_separate_passes(encoder: VideoEncoder, video: Tensor) -> None:
    groups = [ids([0, 3, 5], [1, 2, 7]), ids([6, 1], [0, 4])]
    packed, separate = copy.deepcopy(encoder), copy.deepcopy(encoder)
    sum(tokens.square().sum() for tokens in packed(video, groups)).backward()
    sum(separate(video, group).square().sum() for group in groups).backward()
    for name, parameter in packed.named_parameters():
        torch.testing.assert_close(parameter.grad, separate.get_parameter(name).grad, atol=1e-3, rtol=1e-4)


def test_activation_checkpointing_changes_no_gradient(encoder: VideoEncoder, video: Tensor) -> None:
    stored, recomputed = copy.deepcopy(encoder), copy.deepcopy(encoder)
    recomputed.activation_checkpointing = "full"
    for model in (stored, recomputed):
        model(video).square().sum().backward()
    for name, parameter in stored.named_parameters():
        torch.testing.assert_close(parameter.grad, recomputed.get_parameter(name).grad)


def test_single_frame_is_a_static_tubelet(encoder: VideoEncoder, video: Tensor) -> None:
    frame = video[:, :, 0]
    twice = torch.stack((frame, frame), dim=2)
    torch.testing.assert_close(encode_frames(encoder, frame), encoder(twice))
    assert encode_frames(encoder, frame).shape == (2, 4, 32)


def test_other_sizes_and_lengths_than_configured_are_encoded(encoder: VideoEncoder) -> None:
    assert encoder(torch.zeros(1, 3, 8, 48, 16)).shape == (1, 4 * 3 * 1, 32)


def test_last_layer_output_is_the_normal_output(encoder: VideoEncoder, video: Tensor) -> None:
    first, last = encoder(video, layers=[0, 1])
    torch.testing.assert_close(last, encoder(video))
    assert not torch.allclose(first, last)
    by_layer = encoder(video, [ids([0, 1], [2, 3]), ids([4], [5])], layers=[1])
    assert [tokens.shape[1] for tokens in by_layer[0]] == [2, 1]


def test_tables_made_under_inference_mode_do_not_spoil_later_training(video: Tensor) -> None:
    model = VideoEncoder(CONFIG)
    with torch.inference_mode():
        model(video)
    model(video).sum().backward()


def test_bf16_keeps_dtype_and_float32_tables(encoder: VideoEncoder, video: Tensor) -> None:
    full = encoder(video)
    half = copy.deepcopy(encoder).to(torch.bfloat16)
    assert half(video).dtype == torch.bfloat16
    assert half._tables.full((2, 2, 2), torch.device("cpu"))[0].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        mixed = encoder(video)
    for found in (half(video).float(), mixed.float()):
        assert (found - full).abs().mean() < 0.05


def test_released_sizes_have_the_known_parameter_counts() -> None:
    millions = {
        "vit_small": 21.885,
        "vit_base": 86.236,
        "vit_large": 303.885,
        "vit_huge": 631.648,
        "vit_giant": 1012.174,
    }
    with torch.device("meta"):
        for name, expected in millions.items():
            count = sum(value.numel() for value in VideoEncoder(EncoderConfig(**ENCODER_SIZES[name])).parameters())
            assert round(count / 1e6, 3) == expected, name
        large = VideoEncoder(EncoderConfig(**ENCODER_SIZES["vit_large"]))
        assert len(large.state_dict()) == 292


def test_interleaved_tables_turn_pairs_and_keep_their_length_while_tiled_ones_do_not() -> None:
    positions = grid_positions((4, 4, 4), torch.device("cpu"))
    vectors = torch.randn(64, 32, generator=torch.Generator().manual_seed(2))
    interleaved = rotate(vectors, position_tables(positions, 32, "interleaved"))
    tiled = rotate(vectors, position_tables(positions, 32, "tiled"))
    torch.testing.assert_close(interleaved.norm(dim=1), vectors.norm(dim=1))
    assert (tiled.norm(dim=1) - vectors.norm(dim=1)).abs().max() > 0.05
    torch.testing.assert_close(tiled[:, 30:], vectors[:, 30:])  # 32 = 3 * 10 + 2 dims that never turn


def test_rope_layout_changes_the_output(encoder: VideoEncoder, video: Tensor) -> None:
    other = VideoEncoder(EncoderConfig.from_dict({**CONFIG.to_dict(), "rope_layout": "interleaved"}))
    other.load_state_dict(encoder.state_dict())
    assert not torch.allclose(other(video), encoder(video), atol=1e-3)


def test_causal_spans_cover_the_past_and_the_own_step() -> None:
    spans = causal_spans(3, 5)
    assert spans is not None
    assert [(span.query_start, span.query_end, span.key_start, span.key_end) for span in spans] == [
        (0, 5, 0, 5),
        (5, 10, 0, 10),
        (10, 15, 0, 15),
    ]
    assert causal_spans(1, 5) is None


def test_layer_norm_features_are_standardised_per_token() -> None:
    features = layer_norm_features(torch.randn(2, 3, 64) * 7 + 3)
    torch.testing.assert_close(features.mean(-1), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.var(-1, unbiased=False), torch.ones(2, 3), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 3, 4, 32, 30), torch.float32),
        ((2, 3, 3, 32, 32), torch.float32),
        ((2, 1, 4, 32, 32), torch.float32),
        ((2, 3, 32, 32), torch.float32),
        ((2, 3, 4, 32, 32), torch.uint8),
    ],
)
def test_unreadable_video_is_refused(encoder: VideoEncoder, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    with pytest.raises(ShapeError, match="expected"):
        encoder(torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize(
    "bad",
    [ids([0, 8], [0, 1]), ids([-1, 0], [0, 1]), ids([0, 1]), ids([0, 1], [0, 1]).int(), []],
)
def test_bad_token_ids_are_refused(encoder: VideoEncoder, video: Tensor, bad: Tensor) -> None:
    with pytest.raises(ShapeError, match="token_ids"):
        encoder(video, bad)


def test_unknown_and_impossible_config_fields_are_refused() -> None:
    with pytest.raises(TypeError):
        EncoderConfig(embed_dim=32, depth=1, num_heads=2, drop_path=0.1)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="use_SiLU"):
        EncoderConfig.from_dict({"embed_dim": 32, "depth": 1, "num_heads": 2, "use_SiLU": True})
    with pytest.raises(ConfigError, match="heads"):
        EncoderConfig(embed_dim=30, depth=1, num_heads=4)
    with pytest.raises(ConfigError, match="img_size"):
        EncoderConfig(embed_dim=32, depth=1, num_heads=2, img_size=(100, 96))
    assert EncoderConfig.from_dict(CONFIG.to_dict()) == CONFIG


def test_error_text_says_expected_found_and_remedy() -> None:
    error = TubeletError("It broke", expected="a", found="b", remedy="Mend it.")
    assert str(error) == "It broke (expected a; found b). Mend it."
    assert str(TubeletError("It broke")) == "It broke"
    assert str(copy.copy(error)) == str(error)
