"""A store as a scrub sees it: every artefact whose manifest can be read, and readers that tell damage from disagreement."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

import numpy as np
import pyarrow as pa
import pydantic

from pipelines import schemas
from pipelines.identity import digest_of
from pipelines.lineage.scrub.finding import Finding, Kind, words_of
from pipelines.store import key_of

T = TypeVar("T")


class Unjudged(Exception):
    """A comparison needs something that is damaged or gone, which is a finding of its own; the message says what."""


class Unreadable(Exception):
    """A file cannot be read as what it should be."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.found)
        self.finding = finding


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or not path.parts:
        raise ValueError(f"{name!r} does not lie inside")
    return name


Inside = Annotated[str, pydantic.AfterValidator(_inside)]


class Entry(pydantic.BaseModel):
    """One member as the manifest lists it."""

    model_config = pydantic.ConfigDict(frozen=True, strict=True)

    bytes: int
    sha256: str


class Manifest(pydantic.BaseModel):
    """MANIFEST.json as `Store.produce` writes it; no path in it leads out of the artefact or the store."""

    model_config = pydantic.ConfigDict(frozen=True, strict=True)

    asset: str
    partition: str
    identity: str
    digest: str
    code_version: str
    config: dict[str, Any]
    inputs: dict[str, str]
    input_paths: dict[str, Inside]
    files: dict[Inside, Entry]
    summary: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Item:
    """One artefact. Where it lies says what it is: asset, partition and identity are those of its folder."""

    root: Path
    place: str
    manifest: Manifest

    @property
    def asset(self) -> str:
        return self.place.split("/")[1]

    @property
    def partition(self) -> str:
        return self.place.split("/")[2]

    @property
    def identity(self) -> str:
        return self.place.split("/")[3]

    @property
    def folder(self) -> Path:
        return self.root / self.place

    @property
    def key(self) -> str:
        return key_of(self.asset, self.partition)

    @property
    def name(self) -> str:
        return f"{self.key} {self.manifest.digest}"

    @functools.cached_property
    def digests(self) -> frozenset[str]:
        """What others may rightly call it: the digest in its manifest, and that of the members listed there. When the two
        differ, that is a finding of its own, and not one of everything that names the artefact."""
        return frozenset({self.manifest.digest, digest_of([self.asset, {name: entry.sha256 for name, entry in self.manifest.files.items()}])})

    def where(self, name: str) -> str:
        return f"{self.place}/{name}"

    def finding(self, kind: Kind, name: str, expected: str, found: str, remedy: str = "") -> Finding:
        """A finding on the member `name` ("" for the artefact as a whole)."""
        again = remedy or f"materialize {self.key} again"
        return Finding(kind, self.name, self.where(name) if name else self.place, expected, found, again)


@dataclass(eq=False)
class Shelf:
    """The `items` by their place. `broken` are places whose manifest cannot be read; `damaged` members that no comparison may trust."""

    root: Path
    items: dict[str, Item]
    broken: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)

    def inputs(self, item: Item, asset: str) -> list[Item]:
        """The inputs of `item` that are of `asset`; raises `Unjudged` when one is not there, or not what it was made from."""
        found = []
        for key, place in item.manifest.input_paths.items():
            if key.partition("[")[0] != asset:
                continue
            parent = self.items.get(place)
            if parent is None or parent.asset != asset or item.manifest.inputs.get(key) not in parent.digests:
                raise Unjudged(f"its input {key} is not what it was made from")
            found.append(parent)
        return found

    def input(self, item: Item, asset: str) -> Item:
        """The one input of that asset; raises `Unjudged` when there is not one."""
        found = self.inputs(item, asset)
        if len(found) != 1:
            raise Unjudged(f"it has {len(found)} inputs of {asset}")
        return found[0]

    def table(self, item: Item, name: str, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
        return self._read(item, name, lambda path: schemas.read_table(path, schema, columns), f"table {schemas.table_name(schema)}")

    def json(self, item: Item, name: str, kind: type[T]) -> T:
        def read(path: Path) -> T:
            content = json.loads(path.read_text())
            if not isinstance(content, kind):
                raise ValueError(f"it holds a {type(content).__name__}, not a {kind.__name__}")
            return content

        return self._read(item, name, read, f"JSON with a {kind.__name__}")

    def array(self, item: Item, name: str) -> np.ndarray:
        """A .npy member as a memory map."""
        return self._read(item, name, lambda path: np.load(path, mmap_mode="r", allow_pickle=False), "an array")

    def _read(self, item: Item, name: str, read: Callable[[Path], T], what: str) -> T:
        where = item.where(name)
        if where in self.damaged or not (self.root / where).is_file():
            raise Unjudged(f"{where} is damaged or gone")
        try:
            return read(self.root / where)
        except Exception as error:  # readers of damaged files raise all kinds of errors
            self.damaged.add(where)
            raise Unreadable(item.finding(Kind.UNREADABLE, name, what, words_of(error))) from error
