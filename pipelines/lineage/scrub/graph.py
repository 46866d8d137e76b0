"""Scrub, the graph: artefacts against their inputs, `current` pointers and `validated` markers against artefacts."""

from __future__ import annotations

from pathlib import Path

import pydantic

from pipelines.lineage.scrub.finding import Finding, Kind, Note, Told, words_of
from pipelines.lineage.scrub.shelf import Inside, Item, Shelf
from pipelines.store import MANIFEST, key_of


class Pointer(pydantic.BaseModel):
    """current/<asset>/<partition>.json."""

    model_config = pydantic.ConfigDict(frozen=True, strict=True)

    digest: str
    path: Inside


class Marker(pydantic.BaseModel):
    """validated/<digest>.json."""

    model_config = pydantic.ConfigDict(frozen=True, strict=True)

    asset: str
    partition: str
    digest: str


def check_inputs(shelf: Shelf, rings: dict[str, frozenset[str]], item: Item) -> Told:
    """Every input is there and is what the artefact was made from. `rings` as `find_rings` gives them."""
    manifest = item.manifest
    ring = rings.get(item.place, frozenset())
    if set(manifest.inputs) != set(manifest.input_paths):
        yield item.finding(Kind.INPUT_DIGEST, MANIFEST, f"a path for each of {', '.join(sorted(manifest.inputs))}", ", ".join(sorted(manifest.input_paths)), "restore the manifest")
    for key, digest in sorted(manifest.inputs.items()):
        place = manifest.input_paths.get(key)
        if place is None or place in ring:
            continue
        parent = shelf.items.get(place)
        if place in shelf.broken:
            yield Note(item.name, place, f"its input {key} has no readable manifest, so nothing was compared with it")
        elif parent is None:
            yield item.finding(Kind.INPUT_GONE, "", f"its input {key} {digest} in {place}", "no artefact there", f"restore {place}: without it the lineage of {item.key} cannot be told")
        elif parent.key != key or digest not in parent.digests:
            yield item.finding(Kind.INPUT_DIGEST, MANIFEST, f"{key} {digest} in {place}", parent.name, f"restore what {item.key} was made from, or materialize it again")


def find_rings(shelf: Shelf) -> dict[str, frozenset[str]]:
    """{place: the places it forms a ring with} of all artefacts that were made, in the end, from themselves."""
    parents = {place: [path for path in item.manifest.input_paths.values() if path in shelf.items] for place, item in shelf.items.items()}
    children: dict[str, list[str]] = {}
    waiting = {place: len(set(paths)) for place, paths in parents.items()}
    for place, paths in parents.items():
        for path in set(paths):
            children.setdefault(path, []).append(place)
    ready = [place for place, count in waiting.items() if count == 0]
    while ready:
        for child in children.get(ready.pop(), []):
            waiting[child] -= 1
            if waiting[child] == 0:
                ready.append(child)
    # What is left lies in a ring or is made from one; of these few, each is asked what it reaches.
    left = {place for place, count in waiting.items() if count > 0}
    reaches = {place: _above(place, parents, left) for place in left}
    return {place: frozenset(other for other in reaches[place] if place in reaches[other]) for place in left if place in reaches[place]}


def _above(place: str, parents: dict[str, list[str]], among: set[str]) -> set[str]:
    reached: set[str] = set()
    waiting = [place]
    while waiting:
        fresh = {path for path in parents[waiting.pop()] if path in among} - reached
        reached |= fresh
        waiting += fresh
    return reached


def check_rings(shelf: Shelf, rings: dict[str, frozenset[str]]) -> Told:
    """No artefact is made from itself: one finding for each ring, at the artefact whose input cannot be right."""
    for ring in sorted(set(rings.values()), key=sorted):
        items = [shelf.items[place] for place in sorted(ring)]
        guilty = [item for item in items if any(path in ring and item.manifest.inputs.get(key) not in shelf.items[path].digests for key, path in item.manifest.input_paths.items())]
        yield (guilty or items)[0].finding(
            Kind.CYCLE, MANIFEST, "inputs that were made before it", f"inputs that go round through {', '.join(item.key for item in items)}", "restore the manifest: nothing can be made from itself"
        )


def check_pointers(shelf: Shelf) -> Told:
    """Each `current` pointer names an artefact of its own asset and partition that has passed its checks."""
    for path in sorted((shelf.root / "current").glob("*/*.json")):
        asset, partition, file = path.parent.name, path.stem, path.relative_to(shelf.root).as_posix()
        key = key_of(asset, partition)
        again = f"materialize {key} again: what is there is found, checked and made current"
        try:
            pointer = Pointer.model_validate_json(path.read_bytes())
        except (OSError, ValueError) as error:
            yield Finding(Kind.UNREADABLE, key, file, "a digest and a path", words_of(error), again)
            continue
        item = shelf.items.get(pointer.path)
        if pointer.path in shelf.broken:
            yield Note(key, file, f"{pointer.path} has no readable manifest, so the pointer was not compared with it")
        elif item is None:
            yield Finding(Kind.POINTER_GONE, key, file, f"{pointer.digest} in {pointer.path}", "no artefact there", again)
        elif (item.asset, item.partition) != (asset, partition):
            yield Finding(Kind.POINTER_ELSEWHERE, key, file, f"an artefact of {key}", item.name, again)
        elif pointer.digest not in item.digests:
            yield Finding(Kind.POINTER_DIGEST, item.name, file, f"digest {pointer.digest}", f"{item.manifest.digest} in {item.place}", again)
        elif not any((shelf.root / "validated" / f"{digest}.json").exists() for digest in item.digests):
            yield Finding(Kind.NOT_VALIDATED, item.name, file, f"validated/{item.manifest.digest}.json", "no such marker", again)


def current_items(shelf: Shelf, asset: str) -> list[Item]:
    """What the readable pointers of `asset` name."""
    found = []
    for path in sorted((shelf.root / "current" / asset).glob("*.json")):
        try:
            item = shelf.items.get(Pointer.model_validate_json(path.read_bytes()).path)
        except (OSError, ValueError):
            continue  # a finding of `check_pointers`
        if item is not None:
            found.append(item)
    return found


def check_markers(shelf: Shelf) -> Told:
    """Each `validated` marker is of an artefact that is there, under its digest."""
    by_digest = {digest: item for item in shelf.items.values() for digest in item.digests}
    for path in sorted((shelf.root / "validated").glob("*.json")):
        file, item = path.relative_to(shelf.root).as_posix(), by_digest.get(path.stem)
        name = item.name if item else ""
        again = f"delete it{f' and materialize {item.key} again' if item else ''}"
        try:
            marker = Marker.model_validate_json(path.read_bytes())
        except (OSError, ValueError) as error:
            yield Finding(Kind.UNREADABLE, name, file, "asset, partition and digest of what passed its checks", words_of(error), again)
            continue
        if marker.digest != path.stem:
            yield Finding(Kind.MARKER, name, file, f"digest {path.stem}", marker.digest, again)
        elif item is None:
            yield Note("", file, f"it marks {key_of(marker.asset, marker.partition)} {marker.digest}, which the store does not hold")
        elif marker.asset != item.asset:
            yield Finding(Kind.MARKER, name, file, item.asset, marker.asset, again)


def artefact_folders(root: Path) -> set[str]:
    """Assets and keys (`asset[partition]`) that have a folder in the store."""
    places = [path.relative_to(root / "artefacts").parts for path in (root / "artefacts").glob("*/*")]
    return {asset for asset, _ in places} | {key_of(asset, partition) for asset, partition in places}
