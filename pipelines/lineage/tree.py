"""Artefacts and what they were made from, read from manifests alone: no database, no Dagster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import InputError, MissingArtefact
from pipelines.store import MANIFEST, Artefact, Store


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
        return f"{self.asset}[{self.partition}]" if self.partition != "_" else self.asset

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, children nested."""
        return {
            "asset": self.asset, "partition": self.partition, "digest": self.digest, "path": str(self.path), "facts": self.facts,
            "repeated": self.repeated, "children": [child.to_dict() for child in self.children],
        }  # fmt: skip


def find(store: Store, name: str) -> Artefact:
    """The artefact called `name`: `asset`, `asset[partition]` (the current one), a digest or identity (8 or more
    characters of its start), or the path of its folder. Raises `InputError` when there is none, or more than one; `MissingArtefact` in
    an empty store."""
    folder = Path(name)
    if (folder / MANIFEST).is_file():
        return store.load(folder.absolute())
    asset, _, partition = name.removesuffix("]").partition("[")
    if (store.root / "current" / asset).is_dir():
        names = store.partitions(asset)
        if not partition and len(names) == 1:
            partition = names[0]
        return store.current(asset, partition if partition != "_" else None) if partition else store.current(asset)
    manifests = (store.root / "artefacts").glob("*/*/[!.]*/" + MANIFEST) if len(name) >= 8 else iter(())
    found = [item for item in (store.load(path.parent) for path in manifests) if item.digest.startswith(name) or item.identity.startswith(name)]
    if len({item.digest for item in found}) != 1:
        assets = sorted(path.name for path in (store.root / "current").glob("*"))
        if not assets:
            raise MissingArtefact(f"the store {store.root} holds no artefact yet", expected=name, found="none", remedy="run `make demo` first")
        raise InputError(
            f"no one artefact is called {name}", expected=f"one of {', '.join(assets)}, with [partition], or a digest",
            found=", ".join(f"{item.key} {item.digest}" for item in found) or "none", remedy="name it as the Dagster UI does",
        )  # fmt: skip
    return found[0]


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
