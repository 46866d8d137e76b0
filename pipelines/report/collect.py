"""Every number of the page, read from artefacts and manifests of one store."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pipelines.curation.report import funnel
from pipelines.curation.report.chain import created
from pipelines.lineage.ledger import source_seconds
from pipelines.lineage.tree import ancestors
from pipelines.store import Artefact, Store

SHARED = ("distinct_clips", "clip_clusters", "curated_clips", "training_shards")
OF_RECIPE = (
    "pretrained_encoder", "cooled_encoder", "world_model", "probe_results", "encoder_report", "planning_results",
    "robot_bundle",
)  # fmt: skip
ROBOT = "sim"


def members(store: Store, recipe: str) -> dict[str, Artefact]:
    """The artefacts the page is about, by asset."""
    return {
        **{asset: store.current(asset) for asset in SHARED},
        **{asset: store.current(asset, recipe) for asset in OF_RECIPE},
        "robot_deployment": store.current("robot_deployment", ROBOT),
    }


def digests(store: Store, recipe: str) -> dict[str, str]:
    """What the page is about, as {artefact: digest}."""
    return {artefact.key: artefact.digest for artefact in members(store, recipe).values()}


def collect(store: Store, recipe: str) -> dict[str, Any]:
    """All sections as JSON-able data; raises `MissingArtefact` before every artefact of the chain is there."""
    parts = members(store, recipe)
    return {
        "recipe": recipe,
        "digests": digests(store, recipe),
        "curation": _curation(store, parts),
        "training": [{"phase": asset, **_summary(parts[asset])} for asset in ("pretrained_encoder", "cooled_encoder")],
        "probes": _probes(parts["probe_results"]),
        "losses": _losses(parts["world_model"]),
        "planning": json.loads(parts["planning_results"].file("results.json").read_text()),
        "deployment": _deployment(parts["robot_deployment"]),
        "times": _times(store, parts),
        "lineage": source_seconds(store, parts["robot_bundle"]),
    }


def _curation(store: Store, parts: dict[str, Artefact]) -> dict[str, Any]:
    clusters, selection = parts["clip_clusters"].summary, parts["curated_clips"].summary
    return {
        "funnel": funnel(store), "clips": sum(store.current("clips", key).summary["clips"] for key in store.partitions("clips")),
        "targets": store.current("target_videos").summary["clips"], "clusters": clusters["clusters"], "kl": selection["kl"],
        "selected": selection["clips"],
    }  # fmt: skip


def _summary(artefact: Artefact) -> dict[str, Any]:
    return {name: artefact.summary.get(name) for name in ("health", "state", "steps", "loss", "rank_me", "first_rank_me", "seconds")}


def _probes(artefact: Artefact) -> dict[str, Any]:
    content = json.loads(artefact.file("probes.json").read_text())
    summary = artefact.summary
    return {
        "rows": content["rows"], "health": content["health"], "frame_trained": summary["frame_r2_trained"],
        "frame_random": summary["frame_r2_random"], "frame_gain": summary["frame_r2_gain"],
        # Over a single held-out episode the interval has no ends.
        "frame_gain_low": summary.get("frame_r2_gain_low", -math.inf), "frame_gain_high": summary.get("frame_r2_gain_high", math.inf),
    }  # fmt: skip


def _losses(artefact: Artefact) -> dict[str, Any]:
    """{trained, random: {true, zero, shuffled, copy, true_over_...: {value, low, high}}}."""
    return json.loads(artefact.file("losses.json").read_text())


def _deployment(artefact: Artefact) -> dict[str, Any]:
    summary = artefact.summary
    truth = summary["simulator"] or {"start_m": float("nan"), "end_m": float("nan")}
    injected = summary["injected_fault"] or {}
    return {
        "robot": artefact.partition, "bundle": summary["bundle"], "permission": summary["permission"],
        "start_cm": 100 * truth["start_m"], "final_cm": 100 * truth["end_m"], "moved_cm": 100 * summary["moved_m"],
        "path_cm": 100 * summary["path_m"], "commands": summary["commands"], "refused": summary["refused"],
        "why_refused": ", ".join(injected.get("reasons", [])), "clipped": summary["clipped"],
        "seconds_per_action": summary["seconds_per_action"],
    }  # fmt: skip


def _times(store: Store, parts: dict[str, Artefact]) -> dict[str, Any]:
    """Build seconds of everything the deployed bundle stands on, in the order it was made, and of the report's leaves."""
    chain: dict[Path, Artefact] = {}
    for leaf in (parts["robot_deployment"], parts["encoder_report"]):
        for artefact in ancestors(store, leaf):
            chain[artefact.path] = artefact
    ordered = sorted(chain.values(), key=created)
    stages = [{"stage": artefact.key, "seconds": artefact.seconds} for artefact in ordered]
    log = store.root / "logs" / "demo.json"
    runs = json.loads(log.read_text())["runs"] if log.exists() else {}
    if "built-in corpus" in runs:
        stages.insert(0, {"stage": "built-in corpus", "seconds": runs["built-in corpus"]})
    return {"stages": stages, "seconds": sum(stage["seconds"] for stage in stages), "runs": runs}
