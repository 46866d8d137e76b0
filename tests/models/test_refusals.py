"""What users give by mistake is refused with a sentence, and what is merely written differently is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.action_predictor import ActionConditionedPredictor, ActionPredictorConfig
from models.encoder import EncoderConfig, VideoEncoder
from models.errors import ConfigError, ShapeError
from models.predictor import MaskedPredictor, PredictorConfig
from models.probes import AttentiveProbe, AttentiveProbeConfig
from models.weights import from_official, to_official

SIZES: dict[str, Any] = {"depth": 1, "num_heads": 2, "img_size": (32, 32), "num_frames": 4}
CONFIGS: dict[str, Callable[..., Any]] = {
    "encoder": lambda **changes: EncoderConfig(**{"embed_dim": 16, **SIZES, **changes}),
    "predictor": lambda **changes: PredictorConfig(**{"embed_dim": 16, "predictor_embed_dim": 16, **SIZES, **changes}),
    "action": lambda **changes: ActionPredictorConfig(
        **{"embed_dim": 16, "predictor_embed_dim": 16, **SIZES, **changes}
    ),
}
VIDEO = torch.zeros(1, 3, 4, 32, 32)
IDS = torch.tensor([[0, 5]])


@pytest.fixture(scope="module")
def encoder() -> VideoEncoder:
    return VideoEncoder(CONFIGS["encoder"]())


@pytest.fixture(scope="module")
def predictor() -> MaskedPredictor:
    return MaskedPredictor(CONFIGS["predictor"]())


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(
    "wrong",
    [
        {"depth": 0},
        {"depth": 2.0},
        {"num_heads": 0},
        {"patch_size": 0},
        {"tubelet_size": 0},
        {"num_frames": 0},
        {"mlp_ratio": -1.0},
        {"embed_dim": "16"},
        {"img_size": (32, 32, 32)},
        {"img_size": (0, 32)},
        {"rope_layout": "tild"},
    ],
)
def test_impossible_configs_are_refused_by_field_when_they_are_written(kind: str, wrong: dict[str, Any]) -> None:
    (field,) = wrong
    with pytest.raises(ConfigError) as caught:
        CONFIGS[kind](**wrong)
    assert field in str(caught.value) or "rotary" in str(caught.value)


@pytest.mark.parametrize("kind", CONFIGS)
def test_one_number_is_a_square_image(kind: str) -> None:
    assert CONFIGS[kind](img_size=48).img_size == (48, 48)
    assert CONFIGS[kind](img_size=[48, 32]).img_size == (48, 32)


def test_frames_of_an_action_predictor_need_no_tubelets() -> None:
    assert CONFIGS["action"](num_frames=7).num_frames == 7
    with pytest.raises(ConfigError, match="num_frames"):
        CONFIGS["encoder"](num_frames=7)


@pytest.mark.parametrize("grid", [8, (2, 2), (2, 2, 2, 2), (2.0, 2, 2), (0, 2, 2), None])
def test_grid_is_three_positive_ints(predictor: MaskedPredictor, grid: Any) -> None:
    context, targets = torch.zeros(1, 2, 16), torch.tensor([[3]])
    if grid is not None:
        with pytest.raises(ShapeError, match="grid"):
            predictor(context, IDS, targets, grid=grid)
        return
    plain = predictor(context, IDS, targets)
    for same in ([2, 2, 2], np.array([2, 2, 2]), torch.Size((2, 2, 2))):
        assert torch.equal(predictor(context, IDS, targets, grid=same), plain)


@pytest.mark.parametrize("token", [None, 0.5, "0", [0.5]])
def test_mask_token_is_an_index(predictor: MaskedPredictor, token: Any) -> None:
    context, targets = torch.zeros(1, 2, 16), torch.tensor([[3]])
    with pytest.raises(ShapeError, match="mask_token"):
        predictor(context, IDS, targets, mask_token=token)
    for same in (np.int64(1), torch.tensor(1), [np.int64(1)]):
        assert predictor(context, IDS, targets, mask_token=same).shape == (1, 1, 16)


def test_what_is_no_tensor_is_named(encoder: VideoEncoder, predictor: MaskedPredictor) -> None:
    with pytest.raises(ShapeError, match="video is no tensor"):
        encoder(VIDEO.numpy())
    with pytest.raises(ShapeError, match="token_ids is no tensor"):
        encoder(VIDEO, [[0, 1]])
    with pytest.raises(ShapeError, match="context_ids is no tensor"):
        predictor(torch.zeros(1, 2, 16), IDS.numpy(), IDS)
    with pytest.raises(ShapeError, match="context_ids is no tensor"):
        predictor(torch.zeros(1, 2, 16), None, IDS)
    action = ActionConditionedPredictor(CONFIGS["action"]())
    with pytest.raises(ShapeError, match="states is no tensor"):
        action(torch.zeros(1, 4, 16), torch.zeros(1, 1, 7), np.zeros((1, 1, 7)))
    with pytest.raises(ShapeError, match="features is no tensor"):
        AttentiveProbe(AttentiveProbeConfig(embed_dim=16, num_classes=2, num_heads=2))([1.0])  # type: ignore[arg-type]


@pytest.mark.parametrize("layers", [1, [], [0.5], [9], [-1]])
def test_layers_are_blocks_that_exist(encoder: VideoEncoder, layers: Any) -> None:
    with pytest.raises(ShapeError, match="layers"):
        encoder(VIDEO, layers=layers)
    assert len(encoder(VIDEO, layers=torch.tensor([0]))) == len(encoder(VIDEO, layers=(np.int64(0),))) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_features_of_another_dtype_than_the_network_are_refused_but_under_autocast(
    predictor: MaskedPredictor, dtype: torch.dtype
) -> None:
    features = torch.zeros(1, 2, 16, dtype=dtype)
    probe = AttentiveProbe(AttentiveProbeConfig(embed_dim=16, num_classes=2, num_heads=2))
    for call in (lambda: probe(features), lambda: predictor(features, IDS, IDS)):
        with pytest.raises(ShapeError, match=str(dtype)):
            call()
        if dtype == torch.bfloat16:
            with torch.autocast("cpu", torch.bfloat16):
                call()


def test_weights_read_under_inference_mode_can_still_be_trained(encoder: VideoEncoder) -> None:
    with torch.inference_mode():
        loaded = from_official("encoder", to_official(encoder), encoder.config)
    loaded(VIDEO).sum().backward()


def test_official_layout_of_a_network_without_memory(encoder: VideoEncoder) -> None:
    with torch.device("meta"):
        empty = VideoEncoder(encoder.config)
    official = to_official(empty)
    assert {key: value.shape for key, value in official.items()} == {
        key: value.shape for key, value in to_official(encoder).items()
    }
    assert all(parameter.is_meta for parameter in from_official("encoder", official, encoder.config).parameters())
    compiled: dict[str, Tensor] = {f"_orig_mod.{key}": value for key, value in to_official(encoder).items()}
    assert from_official("encoder", compiled, encoder.config).config == encoder.config
