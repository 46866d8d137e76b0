"""Samples that keep unequal numbers of tokens in one pass of the encoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.encoder import EncoderConfig, VideoEncoder
from models.errors import ShapeError


def encoder_of(**changes: Any) -> VideoEncoder:
    torch.manual_seed(0)
    return VideoEncoder(EncoderConfig(embed_dim=24, depth=2, num_heads=2, img_size=(48, 32), num_frames=4, **changes)).eval()


@pytest.mark.parametrize(("frames", "changes"), [
    (4, {}), (4, {"levels": (0, 1)}), (1, {}), (1, {"image_tokenizer": True, "modality_embeddings": True, "rope_layout": "interleaved"}),
])  # fmt: skip
def test_a_group_of_one_sample_is_encoded_as_that_sample_alone(frames: int, changes: dict[str, Any]) -> None:
    encoder, video = encoder_of(**changes), torch.randn(3, 3, frames, 48, 32)
    ids, samples = [[0, 2, 5], [1], [3, 4], [0, 1, 2, 3, 4]], [2, 0, 0, 1]
    groups = [torch.tensor([own]) for own in ids]
    found = encoder(video, groups, samples=samples, all_levels=True)
    for group, sample, tokens in zip(groups, samples, found, strict=True):
        torch.testing.assert_close(tokens, encoder(video[sample : sample + 1], group, all_levels=True), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("groups", "samples"), [
    ([[[0]], [[1]]], [0]), ([[[0]]], [2]), ([[[0]]], [-1]), ([[[0], [1]]], [0]), ([], []), (None, [0]), (None, []),
])  # fmt: skip
def test_groups_without_their_sample_are_refused(groups: Any, samples: list[int]) -> None:
    token_ids = None if groups is None else [torch.tensor(group) for group in groups]
    with pytest.raises(ShapeError):
        encoder_of()(torch.randn(2, 3, 4, 48, 32), token_ids, samples=samples)
