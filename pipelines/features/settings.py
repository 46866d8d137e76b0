"""What decides the numbers in a feature file: sampling, preprocessing, pooling, layers and precision, and their digest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

from models.encoder import EncoderConfig
from models.preprocessing import Preprocess
from pipelines.errors import InputError
from pipelines.identity import canonical_json, digest_of

Pool = Literal["clip", "frame", "dense"]
Stored = Literal["float32", "float16"]
Precision = Literal["fp32", "bf16"]
Mode = Literal["short_side_crop", "squash", "official_droid_crop"]
Size = int | str | Sequence[int] | None

TRAINING_FPS = 4.0  # frames/s of all V-JEPA 2 pretraining clips (arXiv 2506.09985 section 2)


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """How videos become features. Make it with `settings_for`, which knows the encoder's sizes.

    A window is `frames` frames at `fps`; windows start every `stride_seconds`. `limit_seconds` reads the beginning of a
    video only. `pool`: clip = mean over all tokens of a window; frame = mean over space, one vector for each tubelet;
    dense = every token. `layers` (0-based blocks, empty: the encoder's output) adds an axis before those of the pool.
    """

    frames: int
    fps: float
    stride_seconds: float
    preprocess: Preprocess
    tubelet_size: int
    patch_size: int
    limit_seconds: float | None = None
    pool: Pool = "clip"
    layers: tuple[int, ...] = ()
    stored: Stored = "float32"
    precision: Precision = "fp32"

    @property
    def step(self) -> Fraction:
        """Seconds between two sampled frames, exact."""
        return 1 / exact(self.fps)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens (T', H', W') of one window."""
        size = self.preprocess.height // self.patch_size, self.preprocess.width // self.patch_size
        return self.frames // self.tubelet_size, *size

    def to_dict(self) -> dict[str, Any]:
        """JSON types only; together with the encoder (weights and configuration), all that decides the features."""
        return dict(json.loads(canonical_json(asdict(self))))

    def digest(self, weights_digest: str, config: EncoderConfig) -> str:
        """Equal for features that may be mixed: same encoder, same settings. Batch and device only change rounding.

        The configuration counts beside the weights: heads or the layout of rotations change features and no tensor.
        """
        return digest_of([weights_digest, config.to_dict(), self.to_dict()])


def exact(seconds: float) -> Fraction:
    """A number a person typed as the fraction they meant (0.1 is one tenth)."""
    return Fraction(str(seconds)).limit_denominator(1_000_000)


def settings_for(
    config: EncoderConfig, *, frames: int | None = None, fps: float = TRAINING_FPS, stride_seconds: float | None = None,
    limit_seconds: float | None = None, size: Size = None, mode: Mode = "short_side_crop", antialias: bool = True,
    pool: Pool = "clip", layers: int | Sequence[int] = (), stored: Stored = "float32", precision: Precision = "fp32",
) -> FeatureSettings:  # fmt: skip
    """Settings for an encoder: its own frame count and size unless given, consecutive windows unless a stride is.

    `size` is 256, "256", "180x320" (height x width) or such a pair; `layers` one block or several.
    `antialias` filters pictures that shrink, as the published transformers processor does; upstream's video probes do not.
    Negative layers count from the end. Raises InputError on what the encoder cannot do.
    """
    check_options(fps=fps, stride_seconds=stride_seconds, limit_seconds=limit_seconds, size=size, mode=mode, pool=pool, stored=stored, precision=precision)
    frames = config.num_frames if frames is None else frames
    height, width = size_of(size) or config.img_size
    layers = (layers,) if isinstance(layers, int) else layers
    stride = float(frames / exact(fps)) if stride_seconds is None else stride_seconds
    tubelet, patch = config.tubelet_size, config.patch_size
    whole = frames > 0 and frames % tubelet == 0
    _insist(whole, "The window does not divide into tubelets", f"a multiple of {tubelet} frames", frames, f"Use --frames {max(1, round(frames / tubelet)) * tubelet}.")
    fits = height > 0 and width > 0 and height % patch == 0 and width % patch == 0
    nearest = max(1, round(height / patch)) * patch, max(1, round(width / patch)) * patch
    _insist(fits, "The picture does not divide into patches", f"multiples of {patch} px", f"{height}x{width}", f"Use --size {nearest[0]}x{nearest[1]}.")
    square = mode != "short_side_crop" or height == width
    _insist(square, "short_side_crop makes square pictures only", "equal height and width", f"{height}x{width}", "Use --mode squash, or a square --size.")
    counted = tuple(layer + config.depth if layer < 0 else layer for layer in layers)
    known = len(set(counted)) == len(counted) and all(0 <= layer < config.depth for layer in counted)
    _insist(known, "The layers are not blocks of this encoder", f"different numbers from 0 to {config.depth - 1}", list(layers), f"The last block is {config.depth - 1}, or -1.")
    return FeatureSettings(
        frames=frames, fps=float(fps), stride_seconds=float(stride), limit_seconds=limit_seconds, tubelet_size=tubelet, patch_size=patch,
        preprocess=Preprocess(height=height, width=width, mode=mode, antialias=antialias), pool=pool, layers=counted, stored=stored, precision=precision,
    )  # fmt: skip


def check_options(
    *, fps: float = TRAINING_FPS, stride_seconds: float | None = None, limit_seconds: float | None = None, size: Size = None,
    mode: str = "short_side_crop", pool: str = "clip", stored: str = "float32", precision: str = "fp32",
) -> None:  # fmt: skip
    """Raise InputError on options that no encoder can meet, so that nobody waits for weights to hear of them."""
    _insist(fps > 0, "fps must be positive", "a positive number of frames a second", fps, "Use --fps 4, the rate of training.")
    forward = stride_seconds is None or stride_seconds > 0
    _insist(forward, "The stride must be positive", "seconds from one window to the next", stride_seconds, "Leave it out for windows without overlap.")
    limited = limit_seconds is None or limit_seconds > 0
    _insist(limited, "The limit must be positive", "seconds from the beginning of each video", limit_seconds, "Leave it out to read whole videos.")
    for name, value, kind in (("pool", pool, Pool), ("dtype", stored, Stored), ("precision", precision, Precision), ("mode", mode, Mode)):
        _insist(value in get_args(kind), f"There is no {name} {value}", " or ".join(get_args(kind)), value, f"Choose one with --{name}.")
    size_of(size)


def size_of(size: Size) -> tuple[int, int] | None:
    """(height, width) in px from 256, "256", "180x320" or a pair; None stays None."""
    if size is None:
        return None
    sides = size.lower().split("x") if isinstance(size, str) else [str(side) for side in ([size] if isinstance(size, int) else size)]
    _insist(all(side.isdigit() for side in sides) and len(sides) in (1, 2), f"{size} is no size", "256, or 180x320 (height x width)", size, "Give --size in px.")
    return int(sides[0]), int(sides[-1])


def _insist(condition: bool, problem: str, expected: str, found: Any, remedy: str) -> None:
    if not condition:
        raise InputError(problem, expected=expected, found=str(found), remedy=remedy)


def differing(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """"name: mine instead of theirs" for every entry in which two settings dictionaries differ."""
    names = sorted(mine.keys() | theirs.keys())
    return [f"{name} {theirs.get(name)} instead of {mine.get(name)}" for name in names if mine.get(name) != theirs.get(name)]
