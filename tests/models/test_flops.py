"""FLOP counts against torch's own counter around real forward and backward passes (meta device, unfused attention)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.action_predictor import ActionConditionedPredictor, ActionPredictorConfig
from models.encoder import ENCODER_SIZES, EncoderConfig, VideoEncoder
from models.errors import ShapeError
from models.flops import (
    Flops,
    action_predictor_flops,
    encoder_flops,
    predictor_flops,
    probe_flops,
    train_step_flops,
)
from models.predictor import MaskedPredictor, PredictorConfig
from models.probes import (
    AnticipationProbe,
    AnticipationProbeConfig,
    AttentiveProbe,
    AttentiveProbeConfig,
    LinearProbe,
    LinearProbeConfig,
)

BATCH = 2
SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 2, "img_size": (64, 48), "num_frames": 4}
LEVELS = {"image_tokenizer": True, "modality_embeddings": True, "rope_reference": 16, "levels": (0, 2)}
CHOICES = ["none", "full"]


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def ids(count: int) -> Tensor:
    return meta(BATCH, count, dtype=torch.int64)


def build(network: type[Any], config: Any, checkpointing: str = "none") -> Any:
    with torch.device("meta"):
        module = network(config)
    module.activation_checkpointing = checkpointing
    return module


def total(outputs: Any) -> Tensor:
    """Sum of everything a network gives out."""
    if isinstance(outputs, Tensor):
        return outputs.sum()
    parts = outputs.values() if isinstance(outputs, dict) else outputs
    return torch.stack([total(part) for part in parts]).sum()


def compare(expected: Flops, network: Any, *inputs: Any, **options: Any) -> None:
    with FlopCounterMode(display=False) as counter:
        outputs = total(network(*inputs, **options))
        assert expected.forward == counter.get_total_flops()
        outputs.backward()
    checkpointing = getattr(network, "activation_checkpointing", "none")
    assert train_step_flops([expected], checkpointing=checkpointing) == counter.get_total_flops()


@pytest.mark.parametrize("checkpointing", CHOICES)
@pytest.mark.parametrize("kept", [None, [7], [7, 5]])
def test_encoder_counts_what_it_spends(kept: list[int] | None, checkpointing: str) -> None:
    config = EncoderConfig(**SMALL, mlp_ratio=48 / 11)
    groups = None if kept is None else [ids(count) for count in kept]
    expected = encoder_flops(config, BATCH, config.grid, kept)
    compare(expected, build(VideoEncoder, config, checkpointing), meta(BATCH, 3, 4, 64, 48), groups)


def test_encoder_counts_only_the_blocks_it_runs() -> None:
    config = EncoderConfig(**SMALL)
    encoder, video = build(VideoEncoder, config), meta(BATCH, 3, 4, 64, 48)
    early = encoder_flops(config, BATCH, config.grid, layers=[0, 1])
    compare(early, encoder, video, layers=[0, 1])
    assert early.blocks * 3 == encoder_flops(config, BATCH, config.grid).blocks * 2


def test_encoder_counts_images_through_their_tokenizer_and_all_levels() -> None:
    config = EncoderConfig(**SMALL, **LEVELS)
    encoder = build(VideoEncoder, config)
    compare(encoder_flops(config, BATCH, (1, 4, 3), image=True), encoder, meta(BATCH, 3, 1, 64, 48), all_levels=True)
    compare(encoder_flops(config, BATCH, (2, 4, 3), [6, 4]), encoder, meta(BATCH, 3, 4, 64, 48), [ids(6), ids(4)])


@pytest.mark.parametrize("checkpointing", CHOICES)
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"context_output": True, "out_embed_dim": 72},
        {"levels": 4, "context_output": True, "modality_embeddings": True},
    ],
)
def test_predictor_counts_what_it_spends(changed: dict[str, Any], checkpointing: str) -> None:
    config = PredictorConfig(**SMALL, predictor_embed_dim=24, **changed)
    contexts = [meta(BATCH, count, 48 * config.levels).requires_grad_() for count in (7, 4)]
    expected = predictor_flops(config, BATCH, (7, 4), (11, 15))
    network = build(MaskedPredictor, config, checkpointing)
    compare(expected, network, contexts, [ids(7), ids(4)], [ids(11), ids(15)])
    compare(predictor_flops(config, BATCH, 7, 11), network, contexts[0], ids(7), ids(11))


@pytest.mark.parametrize("checkpointing", CHOICES)
@pytest.mark.parametrize("extrinsics", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_action_predictor_counts_only_the_past(steps: int, extrinsics: bool, checkpointing: str) -> None:
    config = ActionPredictorConfig(**SMALL, predictor_embed_dim=36, use_extrinsics=extrinsics)
    frames = meta(BATCH, steps * 12, 48)
    conditions = [meta(BATCH, steps, count) for count in ((7, 7, 6) if extrinsics else (7, 7))]
    network = build(ActionConditionedPredictor, config, checkpointing)
    compare(action_predictor_flops(config, BATCH, steps), network, frames, *conditions)
    predicted = action_predictor_flops(config, BATCH, steps, frames_carry_gradients=True)
    compare(predicted, network, frames.requires_grad_(), *conditions)


@torch.no_grad()
def test_going_on_from_finished_steps_counts_the_new_steps_alone() -> None:
    config = ActionPredictorConfig(**SMALL, predictor_embed_dim=36)
    network = build(ActionConditionedPredictor, config)
    frame, numbers = meta(BATCH, 12, 48), meta(BATCH, 7)
    past = None
    for done in range(3):
        with FlopCounterMode(display=False) as counter:
            _, past = network.step(frame, numbers, numbers, past=past)
        assert counter.get_total_flops() == action_predictor_flops(config, BATCH, 1, past_steps=done).forward
    whole = action_predictor_flops(config, BATCH, 3).forward
    assert whole == sum(action_predictor_flops(config, BATCH, 1, past_steps=done).forward for done in range(3))


@pytest.mark.parametrize("checkpointing", CHOICES)
def test_probes_count_what_they_spend(checkpointing: str) -> None:
    tokens = meta(BATCH, 9, 48)
    attentive = AttentiveProbeConfig(embed_dim=48, num_classes=5, num_heads=2, depth=3)
    compare(probe_flops(attentive, BATCH, 9), build(AttentiveProbe, attentive, checkpointing), tokens)
    anticipation = AnticipationProbeConfig(embed_dim=48, verbs=3, nouns=4, actions=5, num_heads=2, depth=2)
    compare(probe_flops(anticipation, BATCH, 9), build(AnticipationProbe, anticipation, checkpointing), tokens)
    linear = LinearProbeConfig(embed_dim=48, num_classes=5)
    compare(probe_flops(linear, BATCH, 9), build(LinearProbe, linear), tokens)


def test_pretraining_step_is_students_forward_and_backward_and_teacher_forward() -> None:
    encoder_config, predictor_config = EncoderConfig(**SMALL), PredictorConfig(**SMALL, predictor_embed_dim=24)
    student, teacher = build(VideoEncoder, encoder_config), build(VideoEncoder, encoder_config)
    predictor, video = build(MaskedPredictor, predictor_config), meta(BATCH, 3, 4, 64, 48)
    contexts, targets = [ids(7), ids(4)], [ids(11), ids(15)]
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            teacher(video)
        total(predictor(student(video, contexts), contexts, targets)).backward()
    students = [
        encoder_flops(encoder_config, BATCH, encoder_config.grid, (7, 4)),
        predictor_flops(predictor_config, BATCH, (7, 4), (11, 15)),
    ]
    assert (
        train_step_flops(students, [encoder_flops(encoder_config, BATCH, encoder_config.grid)])
        == counter.get_total_flops()
    )


def test_selective_checkpointing_repeats_no_matrix_product() -> None:
    """On the processor, where attention is one fused operation that torch's counter leaves out."""
    config = EncoderConfig(**SMALL)
    counts = []
    for checkpointing in ("none", "selective"):
        encoder = VideoEncoder(config)
        encoder.activation_checkpointing = checkpointing  # type: ignore[assignment]
        with FlopCounterMode(display=False) as counter:
            encoder(torch.zeros(1, 3, 4, 64, 48)).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]
    counted = encoder_flops(config, 1, config.grid)
    assert counted.backward("selective") == counted.backward() < counted.backward("full")


def test_clip_of_the_largest_released_encoder_costs_what_its_parameters_say() -> None:
    """2 FLOPs a parameter and token, and the attention on top: ViT-g at 16 frames of 256 px."""
    config = EncoderConfig(**ENCODER_SIZES["vit_giant"])
    tokens, weights = 2048, 1.012e9
    attention = 4 * tokens**2 * config.embed_dim * config.depth
    assert encoder_flops(config, 1, config.grid).forward == pytest.approx(2 * weights * tokens + attention, rel=1e-3)


def test_mask_groups_without_partner_are_refused() -> None:
    with pytest.raises(ShapeError, match="groups"):
        predictor_flops(PredictorConfig(**SMALL, predictor_embed_dim=24), 1, (3, 4), (5,))
