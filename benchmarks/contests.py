"""The contests that any machine can hold: encoder and predictor forward, a pretraining step, rollouts of plans."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.plain_reference import PlainEncoder, PlainPredictor, gather_tokens, pretraining_loss
from benchmarks.subjects import LARGE, SMALL, Losses, Setting, Subject, drawn, same_features, same_steps, step
from benchmarks.timing import Contest
from models.action_predictor import ActionConditionedPredictor, ActionPredictorConfig
from models.encoder import layer_norm_features
from pipelines.pretraining.masks import Masks
from pipelines.pretraining.objective import JEPA, strategy_losses, target_tokens
from pipelines.training.muon import Muon


def encoder_contests(quick: bool, official: Path | None) -> Iterator[Contest]:
    for setting in [SMALL] if quick else [SMALL, LARGE]:
        yield from forward_contests(setting, official)


def step_contests(quick: bool, official: Path | None) -> Iterator[Contest]:
    for setting in [SMALL] if quick else [SMALL, LARGE]:
        yield step_contest(setting, official)


def forward_contests(setting: Setting, official: Path | None) -> Iterator[Contest]:
    """Encoder on all tokens, encoder on two mask groups, predictor on both groups; no gradients."""
    subject = Subject(setting)
    video, context_ids, target_ids = subject.video, subject.context_ids, subject.target_ids
    encoder, predictor = subject.encoder.eval(), subject.predictor.eval()
    hugging_face = peers.HuggingFace(encoder, predictor)
    features = torch.randn(setting.batch, setting.tokens, setting.encoder.embed_dim, generator=subject.random)
    contexts = [gather_tokens(features, ids) for ids in context_ids]

    full: dict[str, Callable[[], Any]] = {
        "ours": lambda: encoder(video),
        "transformers": lambda: hugging_face.encode(video),
    }
    masked: dict[str, Callable[[], Any]] = {
        "ours": lambda: encoder(video, context_ids),
        "transformers": lambda: hugging_face.encode_masked(video, context_ids),
    }
    predicted: dict[str, Callable[[], Any]] = {
        "ours": lambda: predictor(contexts, context_ids, target_ids, 1),
        "transformers": lambda: hugging_face.predict(features, context_ids, target_ids),
    }
    if official is not None:
        theirs = peers.Official(
            peers.official_encoder(official, encoder).eval(), peers.official_predictor(official, predictor).eval()
        )
        full["official"] = lambda: theirs.encoder(video)
        masked["official"] = lambda: theirs.encode_masked(video, context_ids)
        predicted["official"] = lambda: theirs.predict(contexts, context_ids, target_ids, 1)
    for what, contestants, flops in (
        ("encoder", full, setting.forward_flops()),
        ("masked encoder", masked, setting.masked_flops()),
        ("predictor", predicted, setting.predictor_flops()),
    ):
        contestants = {name: torch.no_grad()(run) for name, run in contestants.items()}
        check = same_features(contestants)
        name = f"{what} {setting.name}"
        yield Contest(name=name, contestants=contestants, check=check, share=setting.share, flops=flops)


def step_contest(setting: Setting, official: Path | None) -> Contest:
    """One pretraining step without the optimizer: teacher, two mask groups, L1 loss, backward."""
    losses = step_losses(Subject(setting), official)
    student, loss = losses["ours"]

    def without_onednn() -> Tensor:
        with patch("models.linear._takes_onednn", return_value=False):
            return loss()

    # Tells apart what the kernel of the matrix products gives, which depends on the processor, and what the rest gives.
    losses["ours, torch linears"] = (student, without_onednn)
    contestants: dict[str, Callable[[], Any]] = {name: partial(step, *pair) for name, pair in losses.items()}
    return Contest(
        name=f"step {setting.name}",
        contestants=contestants,
        check=same_steps(losses),
        share=setting.share,
        flops=setting.step_flops(),
    )


def optimizer_contests(_quick: bool, _official: Path | None) -> Iterator[Contest]:
    """One Muon update of the matrices of nano's action-conditioned predictor; torch's orthogonalises in bfloat16."""
    shapes = 2 * [(288, 96), (96, 96), (384, 96), (96, 384)]
    random = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=random) for shape in shapes]
    kinds: dict[str, Any] = {"ours": Muon, "torch.optim.Muon": torch.optim.Muon}
    held = {name: [value.clone().requires_grad_() for value in made] for name in kinds}
    contestants: dict[str, Callable[[], Any]] = {}
    for name, values in held.items():
        for value in values:
            value.grad = torch.randn(value.shape, generator=random.manual_seed(1))
        contestants[name] = kinds[name](values, weight_decay=0.0).step

    def check() -> str:
        for run in contestants.values():
            run()
        moved = [torch.cat([(value.detach() - start).flatten() for value, start in zip(values, made, strict=True)]) for values in held.values()]
        apart = float((moved[0] - moved[1]).norm() / moved[0].norm())
        assert apart < 0.03, apart
        return f"{apart:.1e} of the update, of bfloat16"

    yield Contest(name="Muon, nano predictor", contestants=contestants, check=check)


def step_losses(subject: Subject, official: Path | None) -> Losses:
    """The pretraining loss by our trainer's own functions, by the plain reference, and by the official networks."""
    video, context_ids, target_ids = subject.video, subject.context_ids, subject.target_ids
    masks = [Masks(context, target) for context, target in zip(context_ids, target_ids, strict=True)]
    student, teacher = JEPA(subject.encoder, subject.predictor, 2), subject.target_encoder

    def ours() -> Tensor:
        return strategy_losses(student(video, masks), target_tokens(teacher, video), masks).mean()

    plain_encoder = copied(PlainEncoder(subject.setting.encoder), subject.encoder)
    plain_predictor = copied(PlainPredictor(subject.setting.predictor), subject.predictor)
    plain_teacher = copied(PlainEncoder(subject.setting.encoder), teacher)

    def plain() -> Tensor:
        return pretraining_loss(plain_encoder, plain_predictor, plain_teacher, video, context_ids, target_ids)

    losses: Losses = {
        "ours": (student, ours),
        "plain reference": (nn.ModuleDict({"encoder": plain_encoder, "predictor": plain_predictor}), plain),
    }
    if official is not None:
        theirs = peers.Official(
            peers.official_encoder(official, subject.encoder), peers.official_predictor(official, subject.predictor)
        )
        their_teacher = peers.official_encoder(official, teacher)
        their_student = nn.ModuleDict({"encoder": theirs.encoder, "predictor": theirs.predictor})
        losses["official"] = (their_student, lambda: theirs.loss(their_teacher, video, context_ids, target_ids))
    return losses


def copied(module: Any, source: nn.Module) -> Any:
    """The module with a copy of the source's weights, where those are."""
    module.load_state_dict(source.state_dict(), strict=True)
    return module.to(next(source.parameters()).device)


@dataclass(frozen=True, kw_only=True)
class Plans:
    """Candidate plans over one observed frame: a first state shared by all, later ones each plan's own."""

    config: ActionPredictorConfig
    candidates: int
    horizon: int
    share: float

    @property
    def name(self) -> str:
        config = self.config
        return f"rollout {config.img_size[0]}px {config.depth}x{config.predictor_embed_dim} {self.candidates} plans H={self.horizon}"


def rollout_contests(quick: bool, official: Path | None) -> Iterator[Contest]:
    """Imagining the last frame of many plans: finished steps kept, against the whole sequence again at every step."""
    small = ActionPredictorConfig(embed_dim=384, depth=12, num_heads=6, predictor_embed_dim=384, img_size=(96, 96))
    large = ActionPredictorConfig(embed_dim=384, depth=12, num_heads=6, predictor_embed_dim=384, img_size=(256, 256))
    chosen = [Plans(config=small, candidates=16, horizon=horizon, share=1.0) for horizon in (2, 4)]
    if not quick:
        chosen += [Plans(config=large, candidates=8, horizon=horizon, share=0.35) for horizon in (2, 4)]
    for plans in chosen:
        yield rollout_contest(plans, official)


def rollout_contest(plans: Plans, official: Path | None) -> Contest:
    random = torch.Generator().manual_seed(0)
    config, candidates, horizon = plans.config, plans.candidates, plans.horizon
    predictor = drawn(ActionConditionedPredictor(config), random).eval()
    rows, columns = config.patch_grid
    observed = layer_norm_features(torch.randn(1, rows * columns, config.embed_dim, generator=random))
    actions = 0.05 * torch.randn(candidates, horizon, 7, generator=random)
    states = 0.3 * torch.randn(candidates, horizon, 7, generator=random)
    states[:, 0] = states[:1, 0]

    def cached() -> Tensor:
        frame, past = observed, None
        for number in range(horizon - 1):
            state = states[:1, 0] if number == 0 else states[:, number]
            predicted, past = predictor.step(frame, actions[:, number], state, past=past)
            frame = layer_norm_features(predicted)
        state = states[:1, :1] if horizon == 1 else states[:, -1:]
        return layer_norm_features(predictor(frame, actions[:, -1:], state, past=past))

    def again(network: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        frames = observed.expand(candidates, -1, -1)
        for number in range(1, horizon + 1):
            predicted = network(frames, actions[:, :number], states[:, :number])[:, -rows * columns :]
            frames = torch.cat((frames, layer_norm_features(predicted)), dim=1)
        return frames[:, -rows * columns :]

    contestants: dict[str, Callable[[], Any]] = {
        "ours": cached,
        "ours, all steps again": lambda: again(predictor),
    }
    if official is not None:
        theirs = peers.official_action_predictor(official, predictor, frames=horizon).eval()
        contestants["official"] = lambda: again(theirs)
    contestants = {name: torch.no_grad()(run) for name, run in contestants.items()}
    return Contest(name=plans.name, contestants=contestants, check=same_features(contestants), share=plans.share)
