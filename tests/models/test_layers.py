"""Linears through oneDNN, activation checkpointing and per-block compilation: speed that changes no number."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models import linear as linear_module
from models.action_predictor import ActionConditionedPredictor, ActionPredictorConfig
from models.encoder import EncoderConfig, VideoEncoder
from models.errors import ConfigError
from models.layers import Block, compile_blocks, group_spans
from models.linear import TokenLinear, linear
from models.predictor import MaskedPredictor, PredictorConfig

ENCODER = EncoderConfig(embed_dim=48, depth=2, num_heads=2, img_size=(32, 32), num_frames=4, init_std=0.2)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def always_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_module, "_FEWEST_PRODUCTS", 0)


@pytest.mark.usefixtures("always_onednn")
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
def test_linear_through_onednn_has_the_values_and_gradients_of_f_linear(layout: str) -> None:
    tokens, weight, bias = random(3, 7, 24), random(40, 24, seed=1), random(40, seed=2)
    if layout == "strided":
        tokens = random(7, 3, 48, seed=3).transpose(0, 1)[..., ::2]
    outputs, gradients = [], []
    for function in (linear, F.linear):
        leaves = [tensor.clone().requires_grad_() for tensor in (tokens, weight, bias)]
        output = function(*leaves)
        output.transpose(0, 1).square().sum().backward()
        outputs.append(output)
        gradients.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-3, rtol=1e-5)


@pytest.mark.usefixtures("always_onednn")
def test_frozen_weights_and_inputs_get_no_gradient_through_onednn() -> None:
    layer = TokenLinear(8, 8).requires_grad_(False)
    tokens = random(4, 8).requires_grad_()
    layer(tokens).sum().backward()
    assert layer.weight.grad is None and tokens.grad is not None
    torch.testing.assert_close(tokens.grad, layer.weight.sum(0).expand(4, -1))


@pytest.mark.usefixtures("always_onednn")
def test_gradients_of_gradients_and_function_transforms_are_those_of_f_linear() -> None:
    tokens, weight, bias = random(3, 7, 24), random(40, 24, seed=1), random(40, seed=2)
    found = []
    for function in (linear, F.linear):
        leaves = [tensor.clone().requires_grad_() for tensor in (tokens, weight)]
        (gradient,) = torch.autograd.grad(function(*leaves, bias).pow(3).sum(), leaves[0], create_graph=True)
        second = torch.autograd.grad(gradient.square().sum(), leaves)
        transformed = torch.func.grad(lambda value, function=function: function(value, weight, bias).pow(3).sum())(
            tokens
        )
        found.append([*second, transformed])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN")
def test_large_float32_products_take_onednn_and_everything_else_does_not() -> None:
    wanted = {
        "large": (random(512, 256), torch.float32, True),
        "small": (random(4, 256), torch.float32, False),
        "half": (random(512, 256), torch.bfloat16, False),
    }
    layer = TokenLinear(256, 256)
    for name, (tokens, dtype, expected) in wanted.items():
        assert linear_module._takes_onednn(tokens.to(dtype), layer.weight.to(dtype)) is expected, name
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(random(512, 256)).dtype == torch.bfloat16


class _CountProducts(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default)
        return func(*args, **(kwargs or {}))


def products_and_gradients(model: VideoEncoder, video: Tensor) -> tuple[int, dict[str, Tensor | None]]:
    with _CountProducts() as counted:
        model(video).square().sum().backward()
    return counted.count, {name: parameter.grad for name, parameter in model.named_parameters()}


def test_checkpointing_changes_no_gradient_and_only_full_multiplies_again() -> None:
    model, video = VideoEncoder(ENCODER), random(2, 3, 4, 32, 32)
    counts = {}
    expected: dict[str, Tensor | None] = {}
    for mode in ("none", "selective", "full"):
        copied = copy.deepcopy(model)
        copied.activation_checkpointing = mode  # type: ignore[assignment]
        counts[mode], gradients = products_and_gradients(copied, video)
        expected = expected or gradients
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], msg=f"{mode} {name}")
    assert counts["none"] == counts["selective"] < counts["full"]


def test_unknown_checkpointing_is_refused() -> None:
    model = VideoEncoder(ENCODER)
    model.activation_checkpointing = "sometimes"  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="sometimes"):
        model(random(1, 3, 4, 32, 32))


def ids(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)


NETWORKS: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {
    "encoder": (VideoEncoder(ENCODER), (random(2, 3, 4, 32, 32), [ids([0, 3, 5], [1, 2, 7]), ids([6, 1], [0, 4])])),
    "predictor": (
        MaskedPredictor(
            PredictorConfig(embed_dim=16, predictor_embed_dim=32, depth=2, num_heads=2, img_size=(32, 32), num_frames=4)
        ),
        ([random(1, 3, 16), random(1, 2, 16)], [ids([0, 3, 5]), ids([6, 1])], [ids([1, 2]), ids([0, 2, 7])]),
    ),
    "action_predictor": (
        ActionConditionedPredictor(
            ActionPredictorConfig(embed_dim=16, predictor_embed_dim=32, depth=2, num_heads=2, img_size=(32, 32))
        ),
        (random(2, 12, 16), random(2, 3, 7), random(2, 3, 7)),
    ),
}


@pytest.mark.usefixtures("always_onednn")
@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_compile_as_one_graph_each_and_change_no_number(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, inputs = NETWORKS[name]
    compiled = copy.deepcopy(network)
    # The tracing is what can fail; generating C++ for it takes a minute and is measured in benchmarks/models.py.
    monkeypatch.setattr(
        Block, "compile", lambda block, **options: nn.Module.compile(block, backend="aot_eager", **options)
    )
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_blocks(compiled)
    for ours, plain in zip(flat(compiled(*inputs)), flat(network(*inputs)), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    sum(output.sum() for output in flat(compiled(*inputs))).backward()
    assert torch._dynamo.utils.counters["graph_break"] == {}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "blocks of one shape share their code"


def flat(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def test_group_spans_of_one_group_need_no_splitting() -> None:
    assert group_spans([5]) is None
    spans = group_spans([2, 3])
    assert spans is not None and [(span.query_start, span.key_end) for span in spans] == [(0, 2), (2, 5)]
