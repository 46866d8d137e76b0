"""The options of a selection: what is asked, what may not be exceeded, and how many clips are kept."""

from __future__ import annotations

from typing import Any, Literal

import pydantic

from pipelines.errors import InputError
from pipelines.recipes import Part

UNIFORM = "uniform"  # who is credited with draws that no target asked for
WEIGHT_TOLERANCE = 1e-6  # by which the sum of target weights may differ from 1


class SelectionConfig(Part):
    """V-JEPA 2: mode retrieval, support 1, and none of smoothing, uniform part, cap or quota (preset `vjepa2`).

    `balanced` needs no targets: every branch of the codebook's tree asks for the same. `uniform` takes all clips alike.
    Quotas count draws in an epoch of `draws`; `video_max` counts clips. None, and for shares an absent name, is no limit.
    Weights keep every share exactly. Whole draws round it up, by less than one draw: two shares of .5 leave 101 draws 51 each.
    """

    mode: Literal["retrieval", "balanced", "uniform"] = "retrieval"
    size: int | None = None  # keep so many clips, all of one weight: those of an epoch of `size` draws that repeats none
    draws: int | None = None  # M, the draws of an epoch; None is as many as there are clips to choose from
    seed: int = 0
    # what is asked
    target_weights: dict[str, float] | None = None  # sums to 1; None takes the target sets' own
    support: int = 1  # least number of a target's clips in a cluster for it to count (DINOv2's rule: 4)
    smoothing: int = 1  # nearest clusters that a target clip is spread over; 1 is no smoothing
    smoothing_temperature: float = 0.02  # in units of (1 - cosine)
    uniform_mix: float = 0.3  # share of the draws that is spread evenly over all clips, asked for or not
    # what may not be exceeded
    repeat_cap: float | None = 4.0  # draws of one clip; a whole number, as no clip is drawn one and a half times
    video_max: int | None = None  # different clips of one source video, spread in time
    cluster_max: int | None = None  # draws from one cluster (DINOv2: 10 k)
    target_max: int | None = None  # draws credited to one target (DINOv2: 1 M); clips are credited in parts, so whole draws may be up to 1 above
    target_floor: float = 0.0  # share of what it asked that every target gets in spite of the caps, or there is no selection
    uploader_share: float | None = None  # largest share of the draws from any one uploader; clips of unknown uploader are free
    licence_shares: dict[str, float] = pydantic.Field(default_factory=dict)  # licence -> largest share of the draws; "" names the unknown; 0 shuts it out
    language_shares: dict[str, float] = pydantic.Field(default_factory=dict)
    source_shares: dict[str, float] = pydantic.Field(default_factory=dict)
    # mode balanced with a size
    pick: Literal["random", "nearest"] = "random"  # which clips of a leaf: a seeded draw, or those nearest its centroid

    @property
    def cap(self) -> float | None:
        """Largest number of draws of one clip: a clip that is kept for its `size` is drawn once."""
        return self.repeat_cap if self.size is None else 1.0

    @property
    def asker(self) -> str:
        """Who is credited with draws that no target asks for."""
        return "balanced" if self.mode == "balanced" else UNIFORM

    def insist(self) -> None:
        """Raise `InputError` unless the options can mean something."""
        shares = [share for named in self.named_shares().values() for share in named.values()]
        weights = [1.0] if self.target_weights is None else list(self.target_weights.values())
        rules: list[tuple[bool, str, Any]] = [
            (0 <= self.uniform_mix <= 1, "0 <= uniform_mix <= 1", self.uniform_mix),
            (
                min(weights, default=0.0) >= 0 and abs(sum(weights) - 1.0) <= WEIGHT_TOLERANCE, "target_weights of 0 or more that sum to 1, or none",
                f"{self.target_weights}, sum {sum(weights):g}",
            ),
            (self.repeat_cap is None or (self.repeat_cap >= 1 and self.repeat_cap % 1 == 0), "a whole repeat_cap of 1 or more, or none", self.repeat_cap),
            (self.support >= 1, "support of 1 or more", self.support),
            (self.smoothing >= 1 and self.smoothing_temperature > 0, "smoothing of 1 or more at a temperature above 0", [self.smoothing, self.smoothing_temperature]),
            (all(limit is None or limit >= 1 for limit in self._counts().values()), "counts of 1 or more, or none", self._counts()),
            (0 <= self.target_floor <= 1, "0 <= target_floor <= 1", self.target_floor),
            (self.uploader_share is None or 0 < self.uploader_share <= 1, "0 < uploader_share <= 1, or none", self.uploader_share),
            (all(0 <= share <= 1 for share in shares), "shares between 0 and 1", self.named_shares()),
            (self.size is None or self.draws in (None, self.size), "no draws beside a size: each clip is drawn once", self.draws),
        ]  # fmt: skip
        for good, expected, found in rules:
            if not good:
                raise InputError("the selection's options cannot be used", expected=expected, found=str(found), remedy="mend the option")

    def _counts(self) -> dict[str, int | None]:
        names = ("size", "draws", "video_max", "cluster_max", "target_max")
        return {name: getattr(self, name) for name in names}

    def named_shares(self) -> dict[str, dict[str, float]]:
        return {"licence": self.licence_shares, "language": self.language_shares, "source": self.source_shares}
