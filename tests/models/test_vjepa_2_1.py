"""V-JEPA 2.1 behind the config: official keys and sizes, an independent slow formula, levels, images, context output."""

from __future__ import annotations

import copy
import json
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoder import ENCODER_SIZES, EncoderConfig, VideoEncoder, encode_frames, encoder_2_1
from models.errors import ConfigError, ShapeError
from models.predictor import MaskedPredictor, PredictorConfig, predictor_2_1

Network = TypeVar("Network", bound=nn.Module)
ENCODER: dict[str, Any] = {
    "embed_dim": 40,
    "depth": 4,
    "num_heads": 2,
    "img_size": (64, 64),
    "num_frames": 4,
    "rope_layout": "interleaved",
    "rope_reference": 16,
    "image_tokenizer": True,
    "modality_embeddings": True,
    "levels": (0, 2, 3),
}
PREDICTOR: dict[str, Any] = {
    "embed_dim": 40,
    "depth": 2,
    "num_heads": 2,
    "predictor_embed_dim": 48,
    "img_size": (64, 64),
    "num_frames": 4,
    "rope_layout": "interleaved",
    "rope_reference": 16,
    "modality_embeddings": True,
    "levels": 3,
    "context_output": True,
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def drawn(network: Network) -> Network:
    """Every parameter far from its initial value, so that none can be left out unnoticed."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in network.named_parameters():
        spread = 0.3 if parameter.dim() != 2 else 1.2 * parameter.shape[1] ** -0.5
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
        if "norm" in name and name.endswith("weight"):
            parameter.add_(1)
    return network.eval()


@pytest.fixture(scope="module")
def encoder() -> VideoEncoder:
    return drawn(VideoEncoder(EncoderConfig(**ENCODER)))


@pytest.fixture(scope="module")
def predictor() -> MaskedPredictor:
    return drawn(MaskedPredictor(PredictorConfig(**PREDICTOR)))


def all_but_blocks(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items() if "blocks." not in name}


# An independent slow formula: float64, one sample, one head at a time, rotation as multiplication of complex numbers.


def slow_turn(vectors: Tensor, positions: Tensor) -> Tensor:
    """Turn (N, head_dim) by positions (N, 3): pair k of an axis is a complex number times exp(i pos 10000^(-k/pairs))."""
    pairs = (vectors.shape[1] // 3) // 2
    turned = vectors.clone()
    for axis in range(3):
        part = slice(axis * 2 * pairs, (axis + 1) * 2 * pairs)
        angles = positions[:, axis, None] * 10000.0 ** (-torch.arange(pairs).double() / pairs)
        numbers = torch.view_as_complex(vectors[:, part].reshape(-1, pairs, 2).contiguous())
        turned[:, part] = torch.view_as_real(numbers * torch.polar(torch.ones_like(angles), angles)).flatten(1)
    return turned


def slow_norm(state: dict[str, Tensor], name: str, tokens: Tensor) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)


def slow_linear(state: dict[str, Tensor], name: str, tokens: Tensor) -> Tensor:
    return tokens @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def slow_block(state: dict[str, Tensor], name: str, tokens: Tensor, positions: Tensor, heads: int) -> Tensor:
    query, key, value = slow_linear(state, f"{name}.attn.qkv", slow_norm(state, f"{name}.norm1", tokens)).chunk(3, 1)
    seen = []
    for q, k, v in zip(query.chunk(heads, 1), key.chunk(heads, 1), value.chunk(heads, 1), strict=True):
        scores = slow_turn(q, positions) @ slow_turn(k, positions).T / q.shape[1] ** 0.5
        seen.append(scores.softmax(1) @ v)
    tokens = tokens + slow_linear(state, f"{name}.attn.proj", torch.cat(seen, 1))
    hidden = slow_linear(state, f"{name}.mlp.fc1", slow_norm(state, f"{name}.norm2", tokens))
    return tokens + slow_linear(state, f"{name}.mlp.fc2", hidden * (1 + torch.erf(hidden / 2**0.5)) / 2)


def slow_positions(grid: tuple[int, int, int], ids: Tensor) -> Tensor:
    _, rows, columns = grid
    where = torch.stack((ids // (rows * columns), ids // columns % rows, ids % columns), 1).double()
    return where * torch.tensor([1.0, 15.0 / (rows - 1), 15.0 / (columns - 1)], dtype=torch.float64)


def slow_encoder(network: VideoEncoder, clip: Tensor, ids: Tensor) -> Tensor:
    """All levels (K, levels * D) of one clip (C, T, H, W), tokens ids (K,) kept."""
    state = {name: value.double() for name, value in network.state_dict().items()}
    kind, name = ("img", "patch_embed_img") if clip.shape[1] == 1 else ("video", "patch_embed")
    weight = state[f"{name}.proj.weight"]
    embedded = F.conv3d(clip[None].double(), weight, state[f"{name}.proj.bias"], stride=weight.shape[2:])[0]
    grid = (embedded.shape[1], embedded.shape[2], embedded.shape[3])
    tokens = (embedded.flatten(1).T + state[f"{kind}_mod_embed"][0])[ids]
    levels = []
    for index in range(network.config.depth):
        positions = slow_positions(grid, ids)
        tokens = slow_block(state, f"blocks.{index}", tokens, positions, network.config.num_heads)
        if index in network.config.levels:
            levels.append(slow_norm(state, f"norms_block.{len(levels)}", tokens))
    return torch.cat(levels, 1)


def slow_predictor(
    network: MaskedPredictor,
    context: Tensor,
    ids: Tensor,
    targets: Tensor,
    grid: tuple[int, int, int],
    mask: int,
    kind: str,
) -> tuple[Tensor, Tensor]:
    """Predictions of targets (Ky,) and of the context itself from one sample's context (Kx, levels * D)."""
    state = {name: value.double() for name, value in network.state_dict().items()}
    hidden = slow_linear(state, "predictor_embed.0", context.double())
    embedded = slow_linear(state, "predictor_embed.2", hidden * (1 + torch.erf(hidden / 2**0.5)) / 2)
    asked = state[f"mask_tokens.{mask}"][0].expand(len(targets), -1)
    tokens = torch.cat((embedded, asked)) + state[f"{kind}_mod_embed"][0]
    for index in range(network.config.depth):
        positions = slow_positions(grid, torch.cat((ids, targets)))
        tokens = slow_block(state, f"predictor_blocks.{index}", tokens, positions, network.config.num_heads)
    tokens = slow_norm(state, "predictor_norm", tokens)
    return (
        slow_linear(state, "predictor_proj", tokens[len(ids) :]),
        slow_linear(state, "predictor_proj_context", tokens[: len(ids)]),
    )


@pytest.mark.parametrize("shape", [(3, 4, 64, 64), (3, 2, 32, 80), (3, 6, 48, 32), (3, 1, 64, 48)])
def test_encoder_equals_the_slow_formula_for_videos_images_and_any_grid(
    encoder: VideoEncoder, shape: tuple[int, ...]
) -> None:
    video = random(2, *shape)
    count = max(shape[1] // 2, 1) * (shape[2] // 16) * (shape[3] // 16)
    rows = [torch.randperm(count, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    kept = torch.stack(rows)[:, : count // 2]
    with torch.no_grad():
        full, masked = encoder(video, all_levels=True), encoder(video, kept, all_levels=True)
    for sample in range(2):
        expected = slow_encoder(encoder, video[sample], torch.arange(count)).float()
        torch.testing.assert_close(full[sample], expected, atol=3e-5, rtol=0)
        expected = slow_encoder(encoder, video[sample], kept[sample]).float()
        torch.testing.assert_close(masked[sample], expected, atol=3e-5, rtol=0)


@pytest.mark.parametrize(("grid", "kind"), [((2, 4, 4), "video"), ((3, 2, 5), "video"), ((1, 4, 4), "image")])
def test_predictor_equals_the_slow_formula(predictor: MaskedPredictor, grid: tuple[int, int, int], kind: Any) -> None:
    total = grid[0] * grid[1] * grid[2]
    order = torch.stack([torch.randperm(total, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)])
    ids, targets = order[:, : total // 2], order[:, total // 2 :]
    context = random(2, ids.shape[1], 120)
    with torch.no_grad():
        found = predictor(context, ids, targets, mask_token=1, grid=grid, modality=kind)
    mark = "img" if kind == "image" else kind
    for sample in range(2):
        expected = slow_predictor(predictor, context[sample], ids[sample], targets[sample], grid, 1, mark)
        for got, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(got[sample], wanted.float(), atol=3e-5, rtol=0)


def test_parameters_carry_the_official_names_and_shapes() -> None:
    with torch.device("meta"):
        large, distilled = VideoEncoder(encoder_2_1("vit_large")), MaskedPredictor(predictor_2_1("vit_large"))
        deep = MaskedPredictor(predictor_2_1("vit_giant"))
    norms = {f"norms_block.{level}.{part}": (1024,) for level in range(4) for part in ("weight", "bias")}
    assert all_but_blocks(large) | norms == {
        "patch_embed.proj.weight": (1024, 3, 2, 16, 16),
        "patch_embed.proj.bias": (1024,),
        "patch_embed_img.proj.weight": (1024, 3, 1, 16, 16),
        "patch_embed_img.proj.bias": (1024,),
        "img_mod_embed": (1, 1, 1024),
        "video_mod_embed": (1, 1, 1024),
        **norms,
    }
    shared = {
        **{f"mask_tokens.{token}": (1, 1, 384) for token in range(8)},
        "img_mod_embed": (1, 1, 384),
        "video_mod_embed": (1, 1, 384),
        "predictor_norm.weight": (384,),
        "predictor_norm.bias": (384,),
    }
    assert all_but_blocks(distilled) == shared | {
        "predictor_embed.weight": (384, 1024),
        "predictor_embed.bias": (384,),
        "predictor_proj.weight": (1664, 384),  # a distilled student predicts the 2B teacher's last level
        "predictor_proj.bias": (1664,),
        "predictor_proj_context.weight": (1664, 384),
        "predictor_proj_context.bias": (1664,),
    }
    assert all_but_blocks(deep) == shared | {
        "predictor_embed.0.weight": (1408, 5632),
        "predictor_embed.0.bias": (1408,),
        "predictor_embed.2.weight": (384, 1408),
        "predictor_embed.2.bias": (384,),
        "predictor_proj.weight": (5632, 384),
        "predictor_proj.bias": (5632,),
        "predictor_proj_context.weight": (5632, 384),
        "predictor_proj_context.bias": (5632,),
    }
    block = "blocks.23.attn.qkv.weight"
    assert large.state_dict()[block].shape == (3072, 1024) and not hasattr(large, "norm")


@pytest.mark.parametrize(
    ("size", "encoder_counts", "predictor_counts"),
    [
        ("vit_base", (86_833_152, 158), (22_874_752, 162)),
        ("vit_large", (304_680_960, 302), (22_973_056, 162)),
        ("vit_giant", (1_013_267_968, 494), (55_400_704, 308)),
        ("vit_gigantic", (1_845_216_768, 590), (59_433_472, 308)),
    ],
)
def test_released_sizes_have_the_official_parameter_and_tensor_counts(
    size: str, encoder_counts: tuple[int, int], predictor_counts: tuple[int, int]
) -> None:
    with torch.device("meta"):
        networks = VideoEncoder(encoder_2_1(size)), MaskedPredictor(predictor_2_1(size))
    for network, expected in zip(networks, (encoder_counts, predictor_counts), strict=True):
        assert (sum(value.numel() for value in network.parameters()), len(network.state_dict())) == expected
    assert networks[0].config.grid == (32, 24, 24)
    assert len(networks[0].norms_block) == 4 and networks[1].config.levels in (1, 4)


def test_plain_feature_is_the_last_level_and_layers_name_the_others(encoder: VideoEncoder) -> None:
    video, kept = random(1, 3, 4, 32, 48), [torch.tensor([[0, 7, 3]]), torch.tensor([[5, 1]])]
    feature, levels = encoder(video), encoder(video, all_levels=True)
    assert feature.shape == (1, 12, 40) and levels.shape == (1, 12, 120)
    torch.testing.assert_close(levels[..., -40:], feature)
    torch.testing.assert_close(torch.cat(encoder(video, layers=[0, 2, 3]), dim=-1), levels)
    by_group = encoder(video, kept, all_levels=True)
    assert [tuple(tokens.shape) for tokens in by_group] == [(1, 3, 120), (1, 2, 120)]
    for group, tokens in zip(kept, by_group, strict=True):
        torch.testing.assert_close(tokens, encoder(video, group, all_levels=True), atol=1e-5, rtol=0)
    with pytest.raises(ShapeError, match="exclude"):
        encoder(video, layers=[0], all_levels=True)


def test_a_block_that_is_no_level_goes_through_the_norm_of_the_output(encoder: VideoEncoder) -> None:
    changed = copy.deepcopy(encoder)
    video = random(1, 3, 2, 32, 32)
    with torch.no_grad():
        changed.norms_block[-1].bias.add_(1)  # type: ignore[operator]
    for layer, shift in ((0, 0.0), (1, 1.0), (2, 0.0), (3, 1.0)):
        difference = changed(video, layers=[layer])[0] - encoder(video, layers=[layer])[0]
        torch.testing.assert_close(difference, torch.full_like(difference, shift), atol=1e-5, rtol=0)


def test_an_encoder_without_levels_has_one_its_output() -> None:
    plain = drawn(VideoEncoder(EncoderConfig(**{**ENCODER, "levels": ()})))
    video = random(1, 3, 2, 32, 32)
    torch.testing.assert_close(plain(video, all_levels=True), plain(video))
    assert "norm.weight" in plain.state_dict()


def test_a_single_frame_is_an_image_and_a_frame_of_a_robot_stays_a_static_clip(encoder: VideoEncoder) -> None:
    image = random(2, 3, 1, 32, 32)
    learning = copy.deepcopy(encoder)
    assert learning(image).shape == (2, 4, 40)
    learning(image, torch.tensor([[0, 3], [1, 2]])).square().sum().backward()
    assert learning.patch_embed_img.proj.weight.grad is not None and learning.img_mod_embed.grad is not None
    assert learning.patch_embed.proj.weight.grad is None and learning.video_mod_embed.grad is None
    static = encoder(image.expand(-1, -1, 2, -1, -1))
    assert (static - encoder(image)).abs().max() > 0.1
    torch.testing.assert_close(encode_frames(encoder, image[:, :, 0]), static)
    without = drawn(VideoEncoder(EncoderConfig(**{**ENCODER, "image_tokenizer": False})))
    torch.testing.assert_close(without(image), without(image.expand(-1, -1, 2, -1, -1)))


def test_the_reference_grid_changes_nothing_at_its_own_size_and_stays_finite_for_one_row(encoder: VideoEncoder) -> None:
    fields = {**ENCODER, "rope_reference": None}
    free = VideoEncoder(EncoderConfig(**fields)).eval()
    free.load_state_dict(encoder.state_dict())
    same, other = random(1, 3, 2, 256, 256), random(1, 3, 2, 48, 48)
    torch.testing.assert_close(encoder(same), free(same), atol=1e-5, rtol=0)
    assert (encoder(other) - free(other)).abs().max() > 1e-2
    assert encoder(random(1, 3, 2, 16, 48)).isfinite().all()


def test_order_of_context_and_of_groups_does_not_matter_to_either_output(predictor: MaskedPredictor) -> None:
    order = torch.stack([torch.randperm(32, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)])
    ids, targets = [order[:, :10], order[:, 4:9]], [order[:, 10:], order[:, 20:]]
    contexts = [random(2, 10, 120, seed=3), random(2, 5, 120, seed=4)]
    predicted, visible = predictor(contexts, ids, targets)
    assert [tuple(tokens.shape) for tokens in predicted] == [(2, 22, 120), (2, 12, 120)]
    assert [tuple(tokens.shape) for tokens in visible] == [(2, 10, 120), (2, 5, 120)]
    for group in range(2):
        alone, own = predictor(contexts[group].flip(1), ids[group].flip(1), targets[group].flip(1))
        torch.testing.assert_close(alone.flip(1), predicted[group], atol=1e-5, rtol=0)
        torch.testing.assert_close(own.flip(1), visible[group], atol=1e-5, rtol=0)


def test_gradient_reaches_every_parameter_a_video_or_an_image_uses() -> None:
    encoder = drawn(VideoEncoder(EncoderConfig(**ENCODER)))
    predictor = drawn(MaskedPredictor(PredictorConfig(**{**PREDICTOR, "mask_token_policy": "per_strategy"})))
    for modality, frames, grid in (("video", 4, (2, 4, 4)), ("image", 1, (1, 4, 4))):
        ids, targets = [torch.arange(5)[None], torch.arange(3)[None]], [torch.arange(5, 16)[None]] * 2
        tokens = encoder(random(1, 3, frames, 64, 64), ids, all_levels=True)
        outputs = predictor(tokens, ids, targets, grid=grid, modality=modality)  # type: ignore[arg-type]
        sum(tokens.square().sum() for part in outputs for tokens in part).backward()
    for network in (encoder, predictor):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_distilled_predictor_takes_one_level_and_predicts_the_width_of_its_teacher() -> None:
    fields = {**PREDICTOR, "levels": 1, "out_embed_dim": 56}
    model = MaskedPredictor(PredictorConfig(**fields))
    predicted, visible = model(random(1, 2, 40), torch.tensor([[0, 1]]), torch.tensor([[2, 3, 4]]))
    assert predicted.shape == (1, 3, 56) and visible.shape == (1, 2, 56)
    with pytest.raises(ShapeError, match="all_levels"):
        MaskedPredictor(PredictorConfig(**PREDICTOR))(
            random(1, 2, 40), torch.tensor([[0, 1]]), torch.tensor([[2, 3, 4]])
        )


def test_bf16_and_autocast_keep_the_dtype_with_modality_embeddings(
    encoder: VideoEncoder, predictor: MaskedPredictor
) -> None:
    video, ids, targets = random(1, 3, 4, 64, 64), torch.arange(20)[None], torch.arange(20, 32)[None]
    levels = encoder(video, ids, all_levels=True)
    expected, _ = predictor(levels, ids, targets)
    small = copy.deepcopy(encoder).to(torch.bfloat16), copy.deepcopy(predictor).to(torch.bfloat16)
    levels = small[0](video, ids, all_levels=True)
    predicted, visible = small[1](levels, ids, targets)
    assert levels.dtype == predicted.dtype == visible.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        seen: list[torch.dtype] = []
        first_blocks = [encoder.blocks[0], predictor.predictor_blocks[0]]
        handles = [
            block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype)) for block in first_blocks
        ]
        mixed, _ = predictor(encoder(video, ids, all_levels=True).to(torch.bfloat16), ids, targets)
        for handle in handles:
            handle.remove()
    assert seen == [torch.bfloat16] * 2 and mixed.dtype == torch.bfloat16
    for found in (predicted, mixed):
        assert (found.float() - expected).abs().mean() < 0.05


def test_configs_survive_json_and_refuse_what_cannot_be() -> None:
    for config in (encoder_2_1("vit_gigantic"), predictor_2_1("vit_base"), predictor_2_1("vit_gigantic")):
        assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for levels in ((0, 4), (0, 2), (2, 0, 3), (3, 3), (-1, 3), (0, 3, 5)):
        with pytest.raises(ConfigError, match="levels"):
            EncoderConfig(**{**ENCODER, "levels": levels})
    for fields in ({"levels": 0}, {"out_embed_dim": 0}, {"mask_token_policy": "own"}, {"rope_reference": 1}):
        with pytest.raises(ConfigError):
            PredictorConfig(**{**PREDICTOR, **fields})
    with pytest.raises(ConfigError, match="rope_reference"):
        EncoderConfig(**{**ENCODER, "rope_reference": 1})
    for function, size in ((encoder_2_1, "vit_huge"), (encoder_2_1, "big"), (predictor_2_1, "vit_small")):
        with pytest.raises(ConfigError, match=r"2\.1"):
            function(size)
    assert ENCODER_SIZES["vit_base"]["embed_dim"] == encoder_2_1("vit_base").embed_dim


def test_both_networks_run_on_the_meta_device_and_still_refuse_a_wrong_dtype() -> None:
    with torch.device("meta"):
        encoder, predictor = VideoEncoder(EncoderConfig(**ENCODER)), MaskedPredictor(PredictorConfig(**PREDICTOR))
        ids = torch.zeros(1, 5, dtype=torch.int64)
        levels = encoder(torch.empty(1, 3, 4, 64, 64), ids, all_levels=True)
        assert [tuple(tokens.shape) for tokens in predictor(levels, ids, ids[:, :3])] == [(1, 3, 120), (1, 5, 120)]
        with pytest.raises(ShapeError, match="dtype"):
            predictor(levels.to(torch.bfloat16), ids, ids)


def test_unknown_modality_is_refused(predictor: MaskedPredictor) -> None:
    with pytest.raises(ShapeError, match="modality"):
        predictor(random(1, 1, 120), torch.tensor([[0]]), torch.tensor([[1]]), modality="audio")  # type: ignore[arg-type]
