"""`tubelet curate`: a person's own videos to a weighted, explained training set, with nothing trained."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pydantic

from assets.curation import NO_TARGETS, ClusterConfig, StageConfig, TargetsConfig
from assets.demo import ingest, insist_on_a_video, log_to, look_at_sources, only_one, source_name
from assets.reconcile import reconcile_runs
from assets.runs import Run, Runner, open_instance
from assets.sources import VideosConfig
from pipelines.errors import InputError
from pipelines.sources import registry
from pipelines.store import Store

logger = logging.getLogger("tubelet.curation")
PARTS = {"scenes": ("clips",), "embedding": ("clip_embeddings", "target_embeddings"), "duplicates": ("distinct_clips",), "selection": ("curated_clips",)}
CURATED = ["target_videos", "target_embeddings", "distinct_clips", "clip_clusters", "curated_clips"]


@dataclass(frozen=True)
class CurateOptions:
    """What a person may choose. `videos` None curates what is registered already; `options` are {part: {name: value}}.

    Licence and uploader None keep what a registered source has.
    """

    root: Path
    videos: Path | None = None
    kind: str | None = None
    video_root: Path | None = None
    name: str | None = None
    licence: str | None = None
    uploader: str | None = None
    targets: str = ""
    preset: str = "nano"
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    refit: bool = False
    shards: bool = False
    retry_poison: bool = False


def run_curation(options: CurateOptions) -> Path:
    """Take in, cut, embed, compare, cluster and select what is new; returns the page that explains it. Raises `TubeletError`."""
    from pipelines.curation.report.page import write_curation_page

    started = time.monotonic()
    configs = configs_of(options)
    store = Store.open(options.root)
    insist_on_options(options, store)
    with store.writing(), only_one(store), open_instance() as instance:
        log_to(store)
        for run_id in reconcile_runs(instance):
            logger.info("ended run %s, whose process was gone", run_id)
        take_in(store, options)
        look_at_sources(store, instance)
        runner = Runner(store, instance, configs)
        worked = ingest(runner, registry.list_batches(store))
        assets = [*CURATED, *(["training_shards"] if options.shards else [])]
        worked = runner.bring_up(Run("curate", "", assets)) or worked
    page = write_curation_page(store, store.root / "curation")
    logger.info("%s in %.0f s; what was kept, what was dropped and why: %s", "done" if worked else "nothing to do: all up to date", time.monotonic() - started, page)
    return page


def insist_on_options(options: CurateOptions, store: Store) -> None:
    """Raise `InputError` for a value that some stage would refuse, before the first one works."""
    from pipelines.curation.embedding import make_embedder
    from pipelines.curation.recipe import PARTS as ALL
    from pipelines.curation.recipe import stage_options
    from pipelines.curation.scenes import insist_on_detector

    chosen = {part: stage_options(options.preset, part, dict(options.options.get(part, {}))) for part in ALL}
    chosen["selection"].insist()
    insist_on_detector(chosen["scenes"])
    make_embedder(chosen["embedding"], store.root)
    if options.targets not in ("", NO_TARGETS):
        from pipelines.sources.target_sets import read_targets_root

        read_targets_root(Path(options.targets))


def configs_of(options: CurateOptions) -> dict[str, dg.Config]:
    """Dagster config of every asset, from preset and single values. Without targets the selection is balanced."""
    parts = ["videos", *PARTS, "clusters", "drift"]
    unknown = sorted(set(options.options) - set(parts))
    if unknown:
        raise InputError(
            f"there is no part {unknown[0]} of a curation", expected="one of " + ", ".join(parts), found=unknown[0],
            remedy="write --set PART.NAME=VALUE, for example --set selection.repeat_cap=2",
        )  # fmt: skip
    chosen = {part: dict(values) for part, values in options.options.items()}
    if options.targets == NO_TARGETS:
        chosen.setdefault("selection", {}).setdefault("mode", "balanced")
    found: dict[str, dg.Config] = {
        asset: StageConfig(preset=options.preset, options=chosen.get(part, {})) for part, assets in PARTS.items() for asset in assets
    }
    found["videos"] = _videos_config(chosen.get("videos", {}))
    found["target_videos"] = TargetsConfig(root=options.targets, preset=options.preset, options=chosen.get("scenes", {}))
    found["clip_clusters"] = ClusterConfig(
        preset=options.preset, options=chosen.get("clusters", {}), drift_options=chosen.get("drift", {}), refit=options.refit
    )
    return found


def _videos_config(values: Mapping[str, Any]) -> VideosConfig:
    try:
        return VideosConfig(**values)
    except pydantic.ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, told['loc']))}: {told['msg'].lower()}" for told in error.errors())
        raise InputError(
            "the options of videos cannot be used", expected="values for " + ", ".join(VideosConfig.model_fields), found=found,
            remedy="mend the values named here",
        ) from error  # fmt: skip


def take_in(store: Store, options: CurateOptions) -> None:
    """Register the person's videos and sort what is new into batches; raises `InputError` when there is nothing to curate."""
    if options.videos is not None:
        root = options.videos.expanduser().absolute()
        insist_on_a_video(store, root, options.kind, options.video_root)
        registry.register_source(
            store, options.name or source_name(store, root), root, options.licence, options.uploader, kind=options.kind, root=options.video_root
        )
    elif not registry.list_sources(store):
        raise InputError(
            f"no videos are registered in {store.root}", expected="a folder, a manifest or tars to curate", found="none",
            remedy="name one: tubelet curate VIDEOS",
        )  # fmt: skip
    made = registry.new_batches(store, retry_poison=options.retry_poison)
    logger.info("sources: %s", "new batches " + ", ".join(made) if made else "no new files")


def parse_options(settings: list[str]) -> dict[str, dict[str, Any]]:
    """["selection.repeat_cap=2", ...] as {"selection": {"repeat_cap": 2}}; values are YAML. Raises `InputError` for one that is not."""
    import yaml

    found: dict[str, dict[str, Any]] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        part, dot, key = name.partition(".")
        if not (equals and dot and part and key):
            raise InputError(f"--set {text} says nothing", expected="PART.NAME=VALUE", found=text, remedy="for example --set selection.repeat_cap=2")
        try:
            found.setdefault(part.strip(), {})[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            told = " ".join(str(error).split())
            raise InputError(f"--set {text} cannot be read", expected="a YAML value", found=told, remedy="mend it, or put it in quotes") from error
    return found


def forecast_text_of(options: CurateOptions) -> str:
    """What a run with these options would take and give, from a sample; nothing is written. Raises `InputError`."""
    from assets.pulse import Pulse
    from pipelines.curation.forecast import ForecastConfig, forecast_source, forecast_text
    from pipelines.curation.recipe import stage_options

    if options.videos is None:
        raise InputError("a forecast needs videos", expected="a folder, a manifest or tars", found="none", remedy="name one: tubelet curate VIDEOS --dry-run")
    config = ForecastConfig(
        scenes=stage_options(options.preset, "scenes", dict(options.options.get("scenes", {}))),
        embedding=stage_options(options.preset, "embedding", dict(options.options.get("embedding", {}))),
    )
    with Pulse("forecast", "files") as pulse:
        return forecast_text(forecast_source(options.videos, config, kind=options.kind, root=options.video_root, progress=pulse.progress))
