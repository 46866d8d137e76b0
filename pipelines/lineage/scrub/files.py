"""Scrub, the files: what lies in the artefact folders against their manifests, byte by byte."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic

from pipelines.identity import digest_of, file_sha256
from pipelines.lineage.scrub.finding import Finding, Kind, Note, Told, words_of
from pipelines.lineage.scrub.shelf import Entry, Item, Manifest, Shelf
from pipelines.store import MANIFEST, MARKER, NO_PARTITION, REDACTIONS, STORE_VERSION

YOUNG_S = 3600.0  # a draft that changed within this time may be a running stage's
LEVELS = 3  # asset, partition, identity
DRAFT = ".draft-"
LEFT_BY_A_KILL = re.compile(r"\..+\.[0-9a-f]{8}")  # what `store.write_atomic` writes to before it renames


class Redaction(pydantic.BaseModel):
    """One tar in REDACTIONS.json; no `sha256` means that the overwriting was interrupted."""

    model_config = pydantic.ConfigDict(frozen=True, strict=True)

    sha256: str | None
    clips: list[str]
    takedown: str


REDACTED = pydantic.TypeAdapter(dict[str, Redaction])


def check_marker(root: Path) -> Told:
    """STORE.json says that this is a store of this version."""
    expected, path = json.dumps({"version": STORE_VERSION}), root / MARKER
    try:
        found = path.read_text()
        version = json.loads(found)["version"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        found, version = words_of(error), None
    if version != STORE_VERSION:
        yield Finding(Kind.STORE_MARKER, "", MARKER, expected, found[:200], "if this is a store of this version, write the expected text into that file")


def collect(root: Path, told: Callable[[Finding | Note], None]) -> Shelf:
    """Every artefact of the store. What is no artefact and not on the way to one, and manifests that cannot be read, are `told`."""
    shelf = Shelf(root, {})
    folders = [root / "artefacts"]
    for level in range(LEVELS):
        above, folders = folders, []
        for path in (path for folder in above for path in _listed(folder, root, told)):
            place = path.relative_to(root).as_posix()
            if path.is_symlink():
                told(Finding(Kind.SYMLINK, "", place, "a folder", f"a link to {os.readlink(path)}", "put the folder itself there: the link's target may change"))
            elif not path.is_dir():
                told(Finding(Kind.UNLISTED, "", place, "folders only", "a file that no stage writes there", "take it out of the store"))
            elif level == LEVELS - 1 and path.name.startswith(DRAFT):
                for note in _draft(path, place):
                    told(note)
            else:
                folders.append(path)
    for folder in folders:
        place = folder.relative_to(root).as_posix()
        try:
            if not (folder / MANIFEST).is_file():
                raise FileNotFoundError("no such file")
            shelf.items[place] = Item(root, place, Manifest.model_validate_json((folder / MANIFEST).read_bytes()))
        except Exception as error:  # whatever a damaged manifest makes of its reader
            shelf.broken.add(place)
            told(Finding(
                Kind.MANIFEST, "", f"{place}/{MANIFEST}", "the manifest that seals an artefact", words_of(error),
                f"restore that file, or delete {place} and materialize {'/'.join(place.split('/')[1:3])} again",
            ))  # fmt: skip
    return shelf


def _listed(folder: Path, root: Path, told: Callable[[Finding | Note], None]) -> list[Path]:
    """What lies in a folder, sorted; nothing where there is no such folder (any more)."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        told(Finding(Kind.UNREADABLE, "", folder.relative_to(root).as_posix(), "a folder that can be listed", words_of(error), "mend the folder or its permissions"))
        return []


def _draft(path: Path, place: str) -> list[Note]:
    try:
        newest = max(found.lstat().st_mtime for found in [path, *path.rglob("*")])
    except OSError:  # somebody is at work there
        return []
    age = time.time() - newest
    if age < YOUNG_S:
        return []
    return [Note("", place, f"a draft that nobody has touched for {age / 3600:.1f} h: left by a stage that was killed; the same stage removes it")]


def check_place(shelf: Shelf, item: Item) -> Told:
    """The folder's names are those of the manifest, and the identity is that of what the artefact was made from."""
    manifest = item.manifest
    said = (manifest.asset, manifest.partition, manifest.identity)
    here = (item.asset, item.partition, item.identity)
    if said != here:
        home = "/".join(("artefacts", *said))
        if home in shelf.items and home != item.place:
            yield item.finding(Kind.DUPLICATE_IDENTITY, "", f"one artefact of identity {manifest.identity}", f"another one in {home}", f"delete {item.place}, which is no stage's folder")
        else:
            yield item.finding(Kind.MISPLACED, MANIFEST, "/".join(here), "/".join(said), "move the folder back to where its manifest says")
    partitions = {None if name == NO_PARTITION else name for name in (manifest.partition, item.partition)}
    # An input that is not what the manifest says is a finding of the graph, not another one here.
    present = {key: parent.manifest.digest for key, place in manifest.input_paths.items() if (parent := shelf.items.get(place))}
    made = [
        digest_of([asset, partition, manifest.config, inputs, manifest.code_version])
        for asset in {manifest.asset, item.asset} for partition in partitions for inputs in (manifest.inputs, manifest.inputs | present)
    ]  # fmt: skip
    if manifest.identity not in made and item.identity not in made:
        yield item.finding(Kind.IDENTITY, MANIFEST, f"identity {manifest.identity}", f"{made[0]} from its config, inputs and code version", "")


def check_members(shelf: Shelf, item: Item, quick: bool, read: Callable[[int], None]) -> Told:
    """Each member is there with its size and (unless `quick`) its bytes, nothing else is, and the digest is that of the members.

    `read` hears how many bytes each member has. Members that do not agree are marked as damaged.
    """
    redacted: dict[str, Redaction] = {}
    yield from _redactions(shelf, item, redacted)
    links, extra = _present(item)
    for name in sorted(links):
        shelf.damaged.add(item.where(name))
        yield item.finding(Kind.SYMLINK, name, "a file of the artefact's own", f"a link to {os.readlink(item.folder / name)}", "put the file itself there: the link's target may change")
    for name in sorted(extra):
        if LEFT_BY_A_KILL.fullmatch(Path(name).name):
            yield Note(item.name, item.where(name), "a temporary file, left by a process that was killed; it can be deleted")
        else:
            yield item.finding(Kind.UNLISTED, name, "only what the manifest lists", "a file that it does not list", "take it out of the artefact: nothing vouches for it")
    actual: dict[str, str] = {}
    wrong: list[Finding] = []
    for name, entry in item.manifest.files.items():
        if any(name == link or name.startswith(f"{link}/") for link in links):
            continue
        read(entry.bytes)
        wrong += _check_member(item, name, entry, redacted.get(name), quick, actual)
    listed = {name: entry.sha256 for name, entry in item.manifest.files.items()}
    sealed = digest_of([item.manifest.asset, listed | actual])
    if sealed == item.manifest.digest:  # then the bytes are right, and what the manifest says of them is not
        right = [one for one in wrong if one.kind is Kind.MEMBER_SHA256 and one.file.removeprefix(f"{item.place}/") in actual]
        for one in right:
            yield item.finding(one.kind, MANIFEST, one.found, f"{one.expected} for {one.file}", "the bytes agree with the artefact's digest: restore the manifest")
        wrong = [one for one in wrong if one not in right]
    elif digest_of([item.manifest.asset, listed]) != item.manifest.digest and item.asset == item.manifest.asset:
        yield item.finding(Kind.DIGEST, MANIFEST, f"digest {item.manifest.digest}", f"{sealed} from its members", "")
    yield from wrong
    shelf.damaged |= {one.file for one in wrong}


def _check_member(item: Item, name: str, entry: Entry, redaction: Redaction | None, quick: bool, actual: dict[str, str]) -> list[Finding]:
    """What is wrong with one member; its digest goes into `actual`. A tar that was redacted is judged by its digest of after."""
    path = item.folder / name
    try:
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            return [item.finding(Kind.MEMBER_MISSING, name, f"{entry.bytes} bytes", "no such file")]
        if size != entry.bytes:
            return [item.finding(Kind.MEMBER_SIZE, name, f"{entry.bytes} bytes", f"{size} bytes")]
        if quick:
            return []
        found = file_sha256(path)
    except OSError as error:
        return [item.finding(Kind.UNREADABLE, name, f"{entry.bytes} bytes that can be read", words_of(error))]
    if redaction is None:
        actual[name] = found
    wanted = entry.sha256 if redaction is None else redaction.sha256
    return [item.finding(Kind.MEMBER_SHA256, name, f"sha256 {wanted}", f"sha256 {found}")] if wanted is not None and found != wanted else []


def _redactions(shelf: Shelf, item: Item, redacted: dict[str, Redaction]) -> Told:
    """Fill `redacted` from REDACTIONS.json, where the artefact has one."""
    path = item.folder / REDACTIONS
    if not path.is_file():
        return
    try:
        redacted.update(REDACTED.validate_json(path.read_bytes()))
    except (OSError, ValueError) as error:
        shelf.damaged.add(item.where(REDACTIONS))
        yield item.finding(Kind.UNREADABLE, REDACTIONS, "{tar: {sha256, clips, takedown}}", words_of(error), "run the takedown with --compact again")
        return
    for name, entry in redacted.items():
        if name not in item.manifest.files:
            shelf.damaged.add(item.where(REDACTIONS))
            yield item.finding(Kind.REDACTION, REDACTIONS, "tars of this artefact", name, "restore that file")
        elif entry.sha256 is None:
            yield item.finding(Kind.REDACTION, name, "overwritten whole", f"interrupted while takedown {entry.takedown} overwrote it", "run that takedown with --compact again: it goes on")


def _present(item: Item) -> tuple[set[str], set[str]]:
    """Names of the links, and of the files that the manifest does not list."""
    links: set[str] = set()
    extra: set[str] = set()
    known: dict[str, Any] = {**item.manifest.files, MANIFEST: None}
    if any(name.endswith(".tar") for name in item.manifest.files):
        known[REDACTIONS] = None
    for place, folders, files in os.walk(item.folder):
        for name in [*folders, *files]:
            path = Path(place, name)
            relative = path.relative_to(item.folder).as_posix()
            if path.is_symlink():
                links.add(relative)
            elif name in files and relative not in known:
                extra.add(relative)
    return links, extra
