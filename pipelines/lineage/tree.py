"""Artefacts and what they were made from, read from manifests alone: no database, no Dagster."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import InputError, MissingArtefact
from pipelines.store import MANIFEST, NO_PARTITION, Artefact, Store, key_of, read_manifest

SHORTEST = 8  # characters of a digest that are taken for a name


@dataclass(frozen=True)
class Node:
    """One artefact in a tree of inputs. An artefact that several others share has its children at its first place only
    (`repeated` elsewhere)."""

    asset: str
    partition: str
    digest: str
    path: Path
    facts: dict[str, Any]
    children: tuple[Node, ...] = ()
    repeated: bool = False

    @property
    def key(self) -> str:
        return key_of(self.asset, self.partition)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, children nested."""
        return {
            "asset": self.asset, "partition": self.partition, "digest": self.digest, "path": str(self.path), "facts": self.facts,
            "repeated": self.repeated, "children": [child.to_dict() for child in self.children],
        }  # fmt: skip


def every_artefact(store: Store) -> list[Artefact]:
    """All complete artefacts of the store, current or not, in the order they were made; a draft is none."""
    folders = [path.parent for path in (store.root / "artefacts").glob("*/*/[!.]*/" + MANIFEST)]
    return [store.load(folder) for folder in sorted(folders, key=lambda folder: (read_manifest(folder)["created"], str(folder)))]


def current_paths(store: Store) -> set[Path]:
    """Folders of the artefacts that the store's pointers name."""
    return {store.root / json.loads(path.read_text())["path"] for path in (store.root / "current").glob("*/*.json")}


def descendants(store: Store, artefacts: Sequence[Artefact]) -> list[Artefact]:
    """What was made from any of these, in the order it was made; they themselves are not in it."""
    everything = every_artefact(store)
    children: dict[Path, list[Path]] = {}
    for item in everything:
        for path in input_paths(item).values():
            children.setdefault(store.root / path, []).append(item.path)
    start = {item.path for item in artefacts}
    reached, waiting = set(start), list(start)
    while waiting:
        fresh = set(children.get(waiting.pop(), [])) - reached
        reached |= fresh
        waiting += fresh
    return [item for item in everything if item.path in reached - start]


def input_paths(artefact: Artefact) -> dict[str, str]:
    """{key: folder in the store} of the inputs, from the manifest; a fan-in has one for each partition it took."""
    return dict(read_manifest(artefact.path)["input_paths"])


def find(store: Store, name: str) -> Artefact:
    """The artefact called `name`: `asset`, `asset[partition]` (the current one), the start (8 or more characters) of a digest, an
    identity or a bundle's digest, or a folder: an artefact's, one inside it, or a checkpoint's in the work folder of a training.

    Raises `InputError` when there is none, or more than one; `MissingArtefact` in an empty store."""
    found = matches(store, name)
    if len({item.digest for item in found}) != 1:
        assets = sorted(path.name for path in (store.root / "current").glob("*"))
        if not assets:
            raise MissingArtefact(f"the store {store.root} holds no artefact yet", expected=name, found="none", remedy="run `make demo` first")
        raise InputError(
            f"no one artefact is called {name}", expected=f"one of {', '.join(assets)}, with [partition], or a digest",
            found=", ".join(f"{item.key} {item.digest}" for item in found) or "none", remedy="name it as the Dagster UI does",
        )  # fmt: skip
    return found[0]


def matches(store: Store, name: str) -> list[Artefact]:
    """Every artefact that `name` may mean (see `find`), a current one first among those with equal bytes."""
    folder = _folder_of(store, Path(name))
    if folder is not None:
        return [store.load(folder)]
    asset, _, partition = name.removesuffix("]").partition("[")
    if (store.root / "current" / asset).is_dir():
        names = store.partitions(asset)
        if not partition and len(names) == 1:
            partition = names[0]
        return [store.current(asset, partition if partition != NO_PARTITION else None) if partition else store.current(asset)]
    if len(name) < SHORTEST:
        return []
    current = current_paths(store)
    found = [item for item in every_artefact(store) if any(own.startswith(name) for own in _names_of(item))]
    return sorted(found, key=lambda item: item.path not in current)


def _names_of(item: Artefact) -> tuple[str, ...]:
    # An agent knows its bundle's digest and nothing else.
    return (item.digest, item.identity, *([str(item.summary.get("bundle", ""))] if item.asset == "robot_bundle" else []))


def _folder_of(store: Store, folder: Path) -> Path | None:
    """The artefact folder that `folder` is, lies in, or is being filled from; None for what is no folder of the kind."""
    if not folder.is_dir():
        return None
    folder = folder.absolute()
    for place in (folder, *folder.parents):
        manifest = place / MANIFEST
        if manifest.is_file() and "asset" in json.loads(manifest.read_text()):  # a checkpoint's manifest names files only
            return place
    work = store.root.absolute() / "work"
    if not folder.is_relative_to(work) or len(folder.relative_to(work).parts) < 3:
        return None
    own = Path(*folder.relative_to(work).parts[:3])
    if not (store.root / "artefacts" / own / MANIFEST).is_file():
        raise InputError(
            f"the training in {work / own} has not ended", expected="a work folder whose artefact is made", found=str(folder),
            remedy=f"materialize {own.parts[0]}[{own.parts[1]}]: it goes on from its newest checkpoint",
        )  # fmt: skip
    return store.root / "artefacts" / own


def trace(store: Store, artefact: Artefact) -> Node:
    """The tree of what `artefact` was made from, down to the sources, from the manifests alone."""
    return _node(store, artefact, set())


def _node(store: Store, artefact: Artefact, seen: set[Path]) -> Node:
    facts = {
        key: value for key, value in artefact.summary.items() if isinstance(value, str | int | float) and not isinstance(value, bool)
    }  # fmt: skip
    repeated = artefact.path in seen
    seen.add(artefact.path)
    children = () if repeated else tuple(_node(store, parent, seen) for parent in inputs_of(store, artefact))
    return Node(artefact.asset, artefact.partition, artefact.digest, artefact.path, facts, children, repeated)


def inputs_of(store: Store, artefact: Artefact) -> list[Artefact]:
    """As `store.inputs_of`, but a parent that is gone is an error that names it and who needs it."""
    try:
        return store.inputs_of(artefact)
    except FileNotFoundError as error:
        raise MissingArtefact(
            f"an input of {artefact.key} {artefact.digest} is gone from the store", expected=str(error.filename), found="no such file",
            remedy="restore that folder: without it this lineage cannot be told",
        ) from error  # fmt: skip


def ancestors(store: Store, artefact: Artefact) -> list[Artefact]:
    """The artefact and everything it was made from, each once, in the order of a walk from it."""
    found: dict[Path, Artefact] = {}
    waiting = [artefact]
    while waiting:
        item = waiting.pop(0)
        if item.path not in found:
            found[item.path] = item
            waiting += inputs_of(store, item)
    return list(found.values())


def fan_in(store: Store, artefact: Artefact) -> list[dict[str, Any]]:
    """Which partitions an artefact took in, one row each: batch, clips, and `inputs` {asset: digest}. Dagster keeps one combined digest."""
    rows: dict[str, dict[str, Any]] = {}
    for parent in inputs_of(store, artefact):
        if parent.partition not in (NO_PARTITION, artefact.partition):
            row = rows.setdefault(parent.partition, {"into": artefact.key, "into_digest": artefact.digest, "batch": parent.partition, "clips": None, "inputs": {}})
            row["inputs"][parent.asset] = parent.digest
            row["clips"] = parent.summary.get("clips", row["clips"])
    return [rows[name] for name in sorted(rows)]
