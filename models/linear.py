"""A linear over tokens that takes the faster of torch's two float32 matrix kernels on a CPU with AVX-512.

F.linear in float32 always goes to MKL, which leaves AVX-512 unused on AMD processors; oneDNN, which torch carries as well,
does not. Speed of oneDNN over MKL, forward and backward, one core of an AMD EPYC:

                           with AVX-512    with AVX2 alone
    1,000 rows, 96 -> 288          1.9           0.65
    2,048 rows, 384 -> 1536        2.05          0.91
    512 rows, 1024 -> 3072                       1.07

It is taken with AVX2 alone too: another kernel is another rounding, and what nano's encoder learns hangs on that (docs/findings.md).
Torch's compiler uses the same operator on CPUs. GPUs, other dtypes, small products and torch.compile are left to F.linear.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FEWEST_PRODUCTS = 2**24
"""Rows x inputs x outputs: below this there are less than 0.2 ms to save, and oneDNN starts all threads even so."""


class TokenLinear(nn.Linear):
    """nn.Linear with the same parameters, and the same results up to rounding."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def linear(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """tokens (..., D), weight (E, D), bias (E,) -> (..., E)."""
    if not _takes_onednn(tokens, weight):
        return F.linear(tokens, weight, bias)
    if torch.is_grad_enabled():
        return _OneDNNLinear.apply(tokens, weight, bias)
    return _product(tokens, weight, bias)


def _takes_onednn(tokens: Tensor, weight: Tensor) -> bool:
    return bool(
        not torch.compiler.is_compiling()  # first: the compiler cannot read what follows
        and tokens.device.type == "cpu"
        and tokens.dtype == weight.dtype == torch.float32
        and tokens.numel() * weight.shape[0] >= _FEWEST_PRODUCTS
        and torch.backends.mkldnn.enabled
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # internal to torch: without it, only speed is lost
        and not torch.is_autocast_enabled("cpu")
    )


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left (..., K), right (N, K) -> (..., N)."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")


class _OneDNNLinear(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _product(tokens, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        tokens, weight = ctx.saved_tensors
        for_tokens, for_weight, for_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        product = F.linear if torch.is_grad_enabled() else _product  # gradients of gradients know F.linear only
        return (
            product(gradient, weight.t()) if for_tokens else None,
            product(rows.t(), tokens.flatten(0, -2).t()) if for_weight else None,
            rows.sum(0) if for_bias else None,
        )
