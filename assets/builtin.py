"""The built-in video: made once, when nothing else is registered, so that every asset works from an empty store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipelines.sources import registry
from pipelines.store import Store

SOURCES = {"demo": "builtin", "smoke": "builtin-smoke"}
"""Name of the registered source for each scale of the corpus."""
LICENCE = "MIT (rendered by this project)"
SEED = 7


def corpus_folder(store: Store, scale: str) -> Path:
    return store.root / "corpus" / scale


def ensure_corpus(store: Store, scale: str, progress: Callable[..., None] | None = None) -> Path:
    """Folder with `pool/` and `targets/` of `scale` ("demo" or "smoke"); made on first use, goes on when interrupted."""
    from pipelines.corpus import pool

    folder = corpus_folder(store, scale)
    with store.writing():
        folder.parent.mkdir(exist_ok=True)
        pool.make_corpus(folder, seed=SEED, scale=scale, workers=2, progress=progress)
    return folder


def builtin_scale(store: Store) -> str | None:
    """Scale of the built-in pool that is registered in this store, if any."""
    registered = {source.name for source in registry.list_sources(store)}
    return next((scale for scale, name in SOURCES.items() if name in registered), None)


def register_corpus(store: Store, scale: str = "demo", progress: Callable[..., None] | None = None) -> None:
    """Make the built-in pool of `scale` a registered source."""
    folder = ensure_corpus(store, scale, progress)
    registry.register_source(store, SOURCES[scale], folder / "pool", licence=LICENCE, uploader="tubelet")


def ensure_sources(store: Store, progress: Callable[..., None] | None = None) -> None:
    """Register the built-in pool unless some source is registered already."""
    if not registry.list_sources(store):
        register_corpus(store, progress=progress)


def targets_root(store: Store, progress: Callable[..., None] | None = None) -> Path:
    """Folder of the built-in target sets, of the scale this store was started with."""
    return ensure_corpus(store, builtin_scale(store) or "demo", progress) / "targets"
