"""Recipes: typed, hashed descriptions of one trained system. `presets/<name>.yaml` holds the named ones.

Unknown keys are errors; `resolved()` is what is printed and hashed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from pipelines.errors import InputError
from pipelines.identity import digest_of

PRESETS = Path(__file__).parent / "presets"
MIXTURES = PRESETS / "mixtures"
OWN_SHARDS = "training_shards"


class Part(pydantic.BaseModel):
    """Base of every recipe part: frozen, and unknown keys are errors."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class EncoderShape(Part):
    """As `models.encoder.EncoderConfig`, whose sizes come from the phase; the last four are V-JEPA 2.1's."""

    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    patch_size: int = 16
    tubelet_size: int = 2
    rope_layout: Literal["tiled", "interleaved"] = "tiled"
    rope_reference: int | None = None
    image_tokenizer: bool = False
    modality_embeddings: bool = False
    levels: tuple[int, ...] = ()


class PredictorShape(Part):
    """As `models.predictor.PredictorConfig`; what it shares with the encoder comes from there. `context_output` (2.1): the
    context tokens are predicted too."""

    predictor_embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    num_mask_tokens: int = 2
    context_output: bool = False


class MaskStrategy(Part):
    num_blocks: int
    spatial_scale: tuple[float, float]
    temporal_scale: tuple[float, float] = (1.0, 1.0)
    aspect_ratio: tuple[float, float] = (0.75, 1.5)


SHORT_AND_LONG = (
    MaskStrategy(num_blocks=8, spatial_scale=(0.15, 0.15)),
    MaskStrategy(num_blocks=2, spatial_scale=(0.7, 0.7)),
)
"""The paper's masks: short range and long range, through all of the clip's time."""


class ContextLoss(Part):
    """V-JEPA 2.1's second loss, on the context tokens (arXiv 2603.14482): its `weight`, 0 until step `begins`, then linear to its
    full value at step `full`. `by_distance`: a token counts by 1 / sqrt(its distance to the nearest masked token)."""

    weight: float = pydantic.Field(gt=0)
    begins: int = pydantic.Field(default=0, ge=0)
    full: int = pydantic.Field(default=0, ge=0)
    by_distance: bool = True

    @pydantic.model_validator(mode="after")
    def _rising(self) -> ContextLoss:
        if self.begins > self.full:
            raise ValueError(f"the context loss must begin before it is full; found begins {self.begins}, full {self.full}")
        return self


class Curve(Part):
    """Learning rate over one phase: linear warm-up from `start` to `peak`, then `shape` to `final`."""

    start: float
    peak: float
    final: float
    warmup_steps: int = 0
    shape: Literal["constant", "cosine", "linear"] = "constant"


class Phase(Part):
    """One pretraining phase. `global_batch` is over all ranks and `accumulation` micro-batches. Frames of a sample are taken `fps` times
    a second (paper: 4), or every `stride`-th stored frame, whatever time that is: one of the two. Masks are cut to one length in
    runs of `mask_group` samples (None: the global batch; upstream: what a GPU holds). Every `keep_every`-th step's checkpoint is
    kept for good, of the others the two newest."""

    steps: int
    global_batch: int
    height: int
    width: int
    frames: int
    fps: float | None = pydantic.Field(default=None, gt=0)
    stride: int | None = pydantic.Field(default=None, ge=1)
    learning_rate: Curve
    ema: tuple[float, float]
    weight_decay: float = 0.04
    masks: tuple[MaskStrategy, ...] = SHORT_AND_LONG
    mask_group: int | None = pydantic.Field(default=None, ge=1)
    context_loss: ContextLoss | None = None
    crop_scale: tuple[float, float] = (0.3, 1.0)
    crop_aspect: tuple[float, float] = (0.75, 1.35)
    flip: float = 0.5
    static_share: float = 0.0
    clip_grad_norm: float | None = None
    checkpoint_every: int = 200
    keep_every: int | None = None
    accumulation: int = pydantic.Field(default=1, ge=1)
    activation_checkpointing: Literal["none", "selective", "full"] = "none"

    @pydantic.model_validator(mode="after")
    def _one_rate(self) -> Phase:
        if (self.fps is None) == (self.stride is None):
            raise ValueError(f"a phase needs fps or stride, one of the two; found fps {self.fps}, stride {self.stride}")
        return self

    @pydantic.model_validator(mode="after")
    def _whole_groups(self) -> Phase:
        if self.mask_group and self.global_batch % self.mask_group:
            raise ValueError(f"mask_group must divide global_batch; found {self.mask_group} and {self.global_batch}")
        return self


class MixtureSource(Part):
    """One source of a data mixture. `weight` is its share of the samples, relative to the others'. `shards` is a folder or
    URL of shards with an index, or "training_shards": what the graph has made; `only` keeps to the clips of one `source` in
    that index. A `still` source is shown as single frames that are repeated: how the paper feeds images to a video network.
    """

    name: str
    weight: float = pydantic.Field(gt=0, allow_inf_nan=False)
    shards: str = OWN_SHARDS
    only: str | None = None
    still: bool = False


class PretrainRecipe(Part):
    """`mixture` names the sources of the clips, or a file of presets/mixtures (vm22m is the paper's); without, they are the
    graph's own shards. No clip is drawn more often than `repeat_cap` times (rounded up) in an epoch, which is as many draws as there
    are clips (paper: no cap). `start_from` is a checkpoint whose weights the first phase goes on from; "" asks for one to be given. `spikes`: what happens when the
    gradient norm or the loss leaves its recent range (upstream does nothing)."""

    mixture: tuple[MixtureSource, ...] = (MixtureSource(name=OWN_SHARDS, weight=1.0),)
    repeat_cap: float | None = pydantic.Field(default=None, ge=1, allow_inf_nan=False)
    mask_truncation: Literal["prefix", "random", "none"] = "prefix"
    mask_token: Literal["shared", "per_strategy"] = "shared"
    start_from: str | None = None
    spikes: Literal["log", "clip", "stop"] = "log"
    precision: Literal["fp32", "bf16"] = "fp32"
    zero_stage: Literal[0, 1, 2] = 1
    ranks: int = 2
    compile: bool = False
    pretrain: Phase
    cooldown: Phase

    def deciding(self, *phases: str) -> dict[str, Any]:
        """What decides the weights after `phases`, as JSON-able data, but for the weights they start from: the rest is how they are
        computed, and changes rounding only."""
        whole = self.model_dump(mode="json", exclude={"start_from", "zero_stage", "ranks", "compile", "pretrain", "cooldown"})
        for name in phases:
            phase: Phase = getattr(self, name)
            whole[name] = phase.model_dump(
                mode="json", exclude={"checkpoint_every", "keep_every", "accumulation", "activation_checkpointing"}
            )
        return whole

    @pydantic.field_validator("mixture", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return load_mixture(value) if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _different(self) -> PretrainRecipe:
        names = [source.name for source in self.mixture]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"the mixture needs at least one source, and a name of its own for each; found {', '.join(names) or 'none'}")
        return self


class PosttrainRecipe(Part):
    """Action-conditioned post-training on the frozen encoder (paper section 3; nano values from docs/findings.md)."""

    height: int
    width: int
    predictor_embed_dim: int
    depth: int
    num_heads: int
    residual: bool = False
    init_std: float = 0.02
    action_scale: float = 1.0
    state_center: tuple[float, ...] | None = None
    state_scale: float = 1.0
    batch: int = 32
    steps: int = 1000
    one_step_share: float = 0.75
    sequence: int = 3
    rollout: int = 2
    optimizer: Literal["adamw", "muon"] = "adamw"
    """The paper used AdamW. Muon takes the blocks' matrices and needs far fewer updates at nano scale."""
    learning_rate: Curve
    weight_decay: float = 0.04
    checkpoint_every: int = 200
    validation_share: float = 0.1
    control: bool = True
    """Also train the control: the same recipe on a randomly initialised encoder."""


class PlanningRecipe(Part):
    """Closed-loop evaluation. Distances in m, durations in s."""

    planner: str = "map_newton"
    box: float = 0.075
    steps: int = 10
    episodes: int = 50
    comparison_episodes: int = 20
    min_start_distance: float = 0.10
    success_distance: float = 0.04
    seed: int = 1000


class ProbeRecipe(Part):
    """Without `height` and `width` the probes look at post-training's size."""

    frames: int = 1600
    height: int | None = None
    width: int | None = None
    clip_steps: int = 8
    attentive_epochs: int = 20


class Recipe(Part):
    """All that a training and its evaluation need to know. Frames divide by the tubelet and sides by the patch everywhere."""

    name: str
    seed: int = 0
    encoder: EncoderShape
    predictor: PredictorShape
    pretraining: PretrainRecipe
    posttraining: PosttrainRecipe
    probes: ProbeRecipe = ProbeRecipe()
    planning: PlanningRecipe = PlanningRecipe()

    @pydantic.model_validator(mode="after")
    def _whole_tokens(self) -> Recipe:
        patch, tubelet = self.encoder.patch_size, self.encoder.tubelet_size
        phases = {"pretraining.pretrain": self.pretraining.pretrain, "pretraining.cooldown": self.pretraining.cooldown}
        wrong = [f"{name}.frames {phase.frames} by {tubelet}" for name, phase in phases.items() if phase.frames % tubelet]
        pictures: dict[str, Phase | PosttrainRecipe | ProbeRecipe] = {**phases, "posttraining": self.posttraining, "probes": self.probes}
        for name, part in pictures.items():
            sides = {"height": part.height, "width": part.width}
            wrong += [f"{name}.{side} {pixels} by {patch}" for side, pixels in sides.items() if pixels is not None and pixels % patch]
        if wrong:
            raise ValueError(f"frames must divide by the tubelet and sides by the patch; found {', '.join(wrong)}")
        return self

    @property
    def probe_size(self) -> tuple[int, int]:
        """(height, width) in px at which the probes look."""
        return self.probes.height or self.posttraining.height, self.probes.width or self.posttraining.width

    def resolved(self) -> dict[str, Any]:
        """Every value, defaults included, as JSON-able data."""
        return self.model_dump(mode="json")

    def digest(self, *parts: str) -> str:
        """Digest of the whole recipe, or of the named parts only (a planner change must not retrain an encoder)."""
        whole = self.resolved()
        return digest_of({part: whole[part] for part in parts} if parts else whole)


def for_gpus(recipe: Recipe, gpus: int) -> Recipe:
    """The recipe on a machine with fewer GPUs than it has ranks: fewer ranks, more micro-batches, as many clips at once. The weights are
    the same up to rounding. Without GPUs, or with enough, it stays as it is."""
    plan = recipe.pretraining
    if not 0 < gpus < plan.ranks:
        return recipe
    parts = {name: plan.ranks * phase.accumulation for name, phase in (("pretrain", plan.pretrain), ("cooldown", plan.cooldown))}
    ranks = max(count for count in range(1, gpus + 1) if all(number % count == 0 for number in parts.values()))
    phases = {name: getattr(plan, name).model_copy(update={"accumulation": number // ranks}) for name, number in parts.items()}
    return recipe.model_copy(update={"pretraining": plan.model_copy(update={"ranks": ranks, **phases})})


def recipe_files() -> dict[str, Path]:
    """Recipes by name: those that ship, and the YAML files of the folder in TUBELET_RECIPES when it is set."""
    own = os.environ.get("TUBELET_RECIPES")
    return {path.stem: path for folder in (PRESETS, *([Path(own)] if own else [])) for path in sorted(folder.glob("*.yaml"))}


def recipe_names() -> list[str]:
    """Names of the recipes at hand, sorted."""
    return sorted(recipe_files())


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A preset by name, or a YAML file by path; raises `InputError` that lists what is wrong."""
    path = recipe_files().get(str(name_or_path), Path(name_or_path))
    if not path.is_file():
        raise InputError(
            f"no recipe {name_or_path}", expected=f"one of {', '.join(recipe_names())}, or a YAML file", found="neither",
            remedy="name one of these, or write a file from pipelines/presets/nano.yaml",
        )  # fmt: skip
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text()))
    except (pydantic.ValidationError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path} cannot be used", found=str(error), remedy="mend the keys named above") from error


def load_mixture(name_or_path: str) -> list[dict[str, Any]]:
    """The sources of a mixture by name, or from a YAML file with a list `sources`; raises `InputError` when there is no such."""
    named = MIXTURES / f"{name_or_path}.yaml"
    path = named if named.is_file() else Path(name_or_path)
    try:
        sources: list[dict[str, Any]] = list(yaml.safe_load(path.read_text())["sources"])
    except (OSError, KeyError, TypeError, UnicodeDecodeError, yaml.YAMLError) as error:
        known = ", ".join(sorted(item.stem for item in MIXTURES.glob("*.yaml")))
        raise InputError(
            f"no mixture {name_or_path}", expected=f"one of {known}, or a YAML file with a list `sources`", found=f"{type(error).__name__}: {error}",
            remedy="start from pipelines/presets/mixtures/vm22m.yaml",
        ) from error  # fmt: skip
    return sources
