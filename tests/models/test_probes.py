"""Probes: parameter names and counts of the released ones, initialisation, recomputation, refusals."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from models.errors import ConfigError, ShapeError
from models.probes import (
    AnticipationProbe,
    AnticipationProbeConfig,
    AttentiveProbe,
    AttentiveProbeConfig,
    LinearProbe,
    LinearProbeConfig,
)


def anticipation(**changed: int) -> AnticipationProbe:
    fields = {"embed_dim": 24, "verbs": 3, "nouns": 4, "actions": 7, "num_heads": 2, "depth": 3} | changed
    torch.manual_seed(0)
    return AnticipationProbe(AnticipationProbeConfig(**fields))


def tokens(batch: int = 2, count: int = 9, width: int = 24) -> Tensor:
    return torch.randn(batch, count, width, generator=torch.Generator().manual_seed(1))


def test_anticipation_probe_names_verb_noun_and_action_from_one_query_each() -> None:
    probe = anticipation()
    logits = probe(tokens())
    assert {task: tuple(value.shape) for task, value in logits.items()} == {
        "verb": (2, 3), "noun": (2, 4), "action": (2, 7),
    }  # fmt: skip
    assert probe.pooler.query_tokens.shape == (1, 3, 24)
    with torch.no_grad():
        probe.pooler.query_tokens[:, 1] += 1.0
    changed = probe(tokens())
    assert torch.equal(changed["verb"], logits["verb"]) and torch.equal(changed["action"], logits["action"])
    assert not torch.allclose(changed["noun"], logits["noun"])


def test_anticipation_probe_without_verbs_and_nouns_has_one_query_and_names_actions() -> None:
    probe = anticipation(verbs=0, nouns=0)
    assert probe.pooler.query_tokens.shape == (1, 1, 24)
    assert list(probe(tokens())) == ["action"]
    assert not [name for name in probe.state_dict() if name.startswith(("verb", "noun"))]


def test_probes_start_from_the_official_scales() -> None:
    """Block i (1-based) writes to the residual stream at .02 / sqrt(2 i); the cross-attention block like the last one."""
    torch.manual_seed(0)
    pooler = AttentiveProbe(AttentiveProbeConfig(embed_dim=128, num_classes=2, num_heads=2)).pooler
    for depth, block in enumerate(pooler.blocks, start=1):
        for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
            assert float(weight.detach().std()) == pytest.approx(0.02 / math.sqrt(2 * depth), rel=0.05)
    last = pooler.cross_attention_block.mlp.fc2.weight
    assert float(last.detach().std()) == pytest.approx(0.02 / math.sqrt(6), rel=0.05)


@pytest.mark.parametrize("choice", ["full", "selective"])
def test_recomputing_the_probe_changes_no_gradient(choice: str) -> None:
    kept = anticipation()
    recomputed = copy.deepcopy(kept)
    recomputed.activation_checkpointing = choice  # type: ignore[assignment]
    for probe in (kept, recomputed):
        torch.cat(list(probe(tokens()).values()), dim=1).square().sum().backward()
    for expected, found in zip(kept.parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)


def test_probe_reads_any_number_of_tokens_in_any_order() -> None:
    probe = AttentiveProbe(AttentiveProbeConfig(embed_dim=24, num_classes=5, num_heads=2, depth=2)).eval()
    four_layers = torch.cat([tokens(count=5) * scale for scale in (1.0, 2.0, 3.0, 4.0)], dim=1)
    shuffled = four_layers[:, torch.randperm(20, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(probe(four_layers), probe(shuffled), atol=1e-5, rtol=0)


def test_epsilon_of_the_norms_is_configured() -> None:
    faint = tokens() * 1e-3
    official = AttentiveProbe(AttentiveProbeConfig(embed_dim=24, num_classes=5, num_heads=2, depth=2))
    other = AttentiveProbe(AttentiveProbeConfig(embed_dim=24, num_classes=5, num_heads=2, depth=2, norm_eps=1e-6))
    other.load_state_dict(official.state_dict())
    assert not torch.allclose(official(faint), other(faint), atol=1e-6)


def test_linear_probe_averages_tokens() -> None:
    probe = LinearProbe(LinearProbeConfig(embed_dim=24, num_classes=5))
    torch.testing.assert_close(probe(tokens()), probe(tokens().mean(dim=1)))


def test_configs_survive_json_and_unknown_fields_are_refused() -> None:
    config = anticipation().config
    assert AnticipationProbeConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match="queries"):
        AttentiveProbeConfig.from_dict({"embed_dim": 8, "num_classes": 2, "queries": 3})


@pytest.mark.parametrize("changed", [{"verbs": 0}, {"actions": 0}, {"nouns": -1}, {"num_heads": 5}, {"depth": 0}])
def test_anticipation_probes_that_make_no_sense_are_refused(changed: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        anticipation(**changed)


@pytest.mark.parametrize(
    "wrong", [torch.zeros(2, 24), torch.zeros(2, 0, 24), torch.zeros(2, 9, 25), torch.zeros(2, 9, 24).int()]
)
def test_features_of_another_shape_or_type_are_refused(wrong: Tensor) -> None:
    with pytest.raises(ShapeError, match="24"):
        anticipation()(wrong)
