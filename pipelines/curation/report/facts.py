"""Everything that the curation page says, read from the artefacts of one chain before a word of HTML is written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.curation.report.chain import Chain
from pipelines.curation.report.clusters import Browser, browse, distribution_of
from pipelines.curation.report.costs import costs_of, totals
from pipelines.curation.report.funnel import FunnelRow, rows_of
from pipelines.curation.report.losses import Loss, Row, Sum, find_clips, losses_of, sums_of
from pipelines.curation.report.pool import GROUPS, Pool, drawn_most_and_least, read_pool, shares
from pipelines.curation.report.thumbnails import ThumbnailConfig
from pipelines.recipes import Part


class PageConfig(Part):
    """How much the page shows. A thumbnail takes 3 to 8 kB of it, a row of a list 0.3 kB."""

    examples: int = 50  # rows listed for each reason
    pairs: int = 8  # removed clips shown beside their twins, for each reason
    kept: int = 12  # clips shown of those drawn most, and of those drawn least
    leaves: int = 200  # leaves with their pictures
    leaf_rows: int = 1000  # further leaves as rows
    representatives: int = 3
    pictures: int = 450  # thumbnails on the page in all; leaves go without when there are more
    thumbnails: ThumbnailConfig = ThumbnailConfig()


@dataclass(frozen=True, eq=False)
class Facts:
    """`most` and `least` are the clips drawn most and least, `clips` what is known of every pictured kept clip by id.

    `reports` are the stages' own JSON reports by file name (leaks, drift, decision, encoder, codebook); absent ones are not in it.
    """

    chain: Chain
    funnel: list[FunnelRow]
    losses: list[Loss]
    sums: list[Sum]
    pool: Pool | None
    most: list[str]
    least: list[str]
    clips: dict[str, Row]
    browser: Browser | None
    distribution: dict[str, Any]
    reports: dict[str, dict[str, Any]]
    costs: pa.Table
    pairs: int

    def pictured(self) -> Iterator[Row]:
        """The clips whose thumbnails the page shows; some come twice."""
        for loss in self.losses:
            for row in loss.examples[: self.pairs]:
                yield from (clip for clip in (row.get("clip"), row.get("twin")) if clip is not None)
        # Kept clips last: of copies with one clip_id the kept one's file is the one to look at.
        yield from self.clips.values()

    def repeats(self, clip_id: str) -> tuple[float, str] | None:
        """(times that a clip is drawn for one time when all are drawn alike, who earned it), where a selection tells."""
        if self.pool is None or self.pool.weight is None or self.pool.target is None:
            return None
        row = self.pool.ids.index(clip_id).as_py()
        return float(self.pool.weight[row] * len(self.pool)), self.pool.target.names[self.pool.target.codes[row]]

    def as_json(self) -> dict[str, Any]:
        """The numbers for machines; pictures and single clips are left out."""
        browser = self.browser
        return {
            "artefacts": {item.key: item.digest for item in self.chain.artefacts()}, "waiting": list(self.chain.waiting), "newer": list(self.chain.newer),
            "funnel": [asdict(row) for row in self.funnel],
            "sums": [{"left": list(item.left), "right": [list(part) for part in item.right], "agrees": item.agrees} for item in self.sums],
            "losses": [
                {"stage": loss.stage, "reason": loss.reason, "count": loss.count,
                 "examples": [{name: value for name, value in row.items() if name not in ("clip", "twin")} for row in loss.examples]}
                for loss in self.losses
            ],
            "shares": {name: shares(self.pool, name) for name in GROUPS} if self.pool is not None else {},
            "distribution": {name: value for name, value in self.distribution.items() if name != "clusters"},
            "leaves": [asdict(leaf) for leaf in (*browser.leaves, *browser.rest)] if browser is not None else [],
            "reports": self.reports, "costs": totals(self.costs),
        }  # fmt: skip


def collect(chain: Chain, config: PageConfig) -> Facts:
    """Read a chain, as far as it has come."""
    distinct, clusters, selection = (item.path if item else None for item in (chain.distinct, chain.clusters, chain.selection))
    losses = losses_of(chain, config.examples)
    pool = read_pool(distinct, clusters, selection) if distinct else None
    most, least = drawn_most_and_least(pool, config.kept) if pool is not None else ([], [])
    pairs = sum(2 * min(config.pairs, len(loss.examples)) for loss in losses if loss.stage == "distinct")
    shown = max(0, min(config.leaves, (config.pictures - pairs - len(most) - len(least)) // max(1, config.representatives)))
    targets = chain.targets.path if chain.targets else None
    browser = browse(pool, clusters, selection, targets, shown, config.leaf_rows) if pool is not None and clusters is not None else None
    wanted = {*most, *least, *(name for leaf in (browser.leaves if browser else []) for name in leaf.representatives[: config.representatives])}
    clips = {name: rows[0] for name, rows in find_clips([distinct] if distinct else [], wanted).items()}
    return Facts(
        chain, rows_of(chain), losses, sums_of(chain), pool, most, least, clips, browser, distribution_of(selection), _reports(chain),
        costs_of(chain.artefacts()), config.pairs,
    )  # fmt: skip


def _reports(chain: Chain) -> dict[str, dict[str, Any]]:
    places = {
        "leaks": chain.distinct, "encoder": chain.distinct, "drift": chain.clusters, "decision": chain.clusters, "codebook": chain.clusters,
    }  # fmt: skip
    found = {}
    for name, artefact in places.items():
        path = artefact.path / f"{name}.json" if artefact is not None else Path()
        content = json.loads(path.read_text()) if path.is_file() else None
        if isinstance(content, Mapping):
            found[name] = dict(content)
    return found
