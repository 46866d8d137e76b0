"""The built-in video: made once, when nothing else is registered, so that every asset works from an empty store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipelines.curation import sources
from pipelines.store import Artefact, Store

SOURCES = {"demo": "builtin", "smoke": "builtin-smoke"}
"""Name of the registered source for each scale of the corpus."""
LICENCE = "MIT (rendered by this project)"
SEED = 7


def ensure_corpus(store: Store, scale: str = "demo", progress: Callable[..., None] | None = None) -> Artefact:
    """The corpus artefact of `scale` ("demo" or "smoke"), made on first use: `pool/` and `targets/`."""

    def build(folder: Path) -> dict:
        from pipelines.corpus import pool

        return pool.make_corpus(folder, seed=SEED, scale=scale, workers=2, progress=progress)

    return store.produce("corpus", build, partition=scale, config={"seed": SEED})


def builtin_scale(store: Store) -> str | None:
    """Scale of the built-in pool that is registered in this store, if any."""
    registered = {source.name for source in sources.list_sources(store)}
    return next((scale for scale, name in SOURCES.items() if name in registered), None)


def register_corpus(store: Store, scale: str = "demo", progress: Callable[..., None] | None = None) -> None:
    """Make the built-in pool of `scale` a registered source."""
    corpus = ensure_corpus(store, scale, progress)
    sources.register_source(store, SOURCES[scale], corpus.path / "pool", licence=LICENCE, uploader="tubelet")


def ensure_sources(store: Store, progress: Callable[..., None] | None = None) -> None:
    """Register the built-in pool unless some source is registered already."""
    if not sources.list_sources(store):
        register_corpus(store, progress=progress)


def targets_root(store: Store, progress: Callable[..., None] | None = None) -> Path:
    """Folder of the built-in target sets, of the scale this store was started with."""
    return ensure_corpus(store, builtin_scale(store) or "demo", progress).path / "targets"
