"""Target sets: which labelled videos the encoder should become good at, and which evaluate it and must stay out of the pool.

A root is a folder of sets laid out as `<set>/train/<label>/*.mp4` and `<set>/eval/<label>/*.mp4` (files right in train/ and
eval/ have no label), a YAML file that names sets of several kinds, or a folder with such a file, `targets.yaml`, in it:

    sets:
      ssv2: {kind: ssv2, root: /data/ssv2/videos, annotations: /data/ssv2/labels, weight: 0.75}
      mine: {kind: folder, root: mine, weight: 0.15}             # train/<label>/ and eval/<label>/ in it
      list: {kind: manifest, path: list.csv, weight: 0.1}        # columns path, label, split

Instead of `weight`, the file may give `weights: {<set>: share}`, which sum to 1, or `relative_weights: {<set>: number}`,
which are normalised; without any, sets weigh the same. Relative paths start at the file's folder.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from pipelines.errors import InputError
from pipelines.identity import digest_of
from pipelines.recipes import Part
from pipelines.sources import annotated, manifest
from pipelines.sources.annotations import split_of
from pipelines.sources.folder import HIDDEN, first_names, left_out, scan_folder

logger = logging.getLogger("tubelet.sources")

SPLITS = ("train", "eval")
LAYOUT = "<set>/train/<label>/*.mp4 and <set>/eval/<label>/*.mp4"
FILE = "targets.yaml"
WEIGHT_TOLERANCE = 1e-6
Span = tuple[float, float]


class SetConfig(Part):
    """One set of a targets file. `clips_per_video` bounds the annotated segments that are taken of one video, spread over
    its length; 0 takes all."""

    kind: Literal["folder", "manifest", "kinetics", "ssv2", "coin", "epic_kitchens", "yt_temporal_1b"] = "folder"
    root: str | None = None
    path: str | None = None
    annotations: Any = None
    weight: float | None = None
    licence: str = ""
    clips_per_video: int = pydantic.Field(default=0, ge=0)


@dataclass(frozen=True)
class TargetFiles:
    """The files of one label of one split of one set; `weight` is the set's share of the selection (sums to 1 over sets).

    `spans` has for each entry of `files` its segment (start, end) in s, or None where the whole video is the sample; it is
    empty where all are whole.
    """

    name: str
    weight: float
    split: str
    label: str
    files: list[str]
    spans: tuple[Span | None, ...] = ()
    licence: str = ""


Sample = tuple[str, Span | None]
Samples = dict[tuple[str, str], list[Sample]]
"""(split, label) -> (path, span or None for the whole video)."""


def read_targets_root(root: Path) -> list[TargetFiles]:
    """What is in a root, sorted by set, split and label; raises `InputError` when it is not laid out as it must be."""
    root = root.expanduser().absolute()
    remedy = f"lay the target sets out as {LAYOUT}, or name a YAML file with sets:"
    if not root.exists():
        raise InputError(f"{root} is not a folder", expected=LAYOUT, found="nothing there", remedy=remedy)
    if root.is_dir():
        base, file = root, root / FILE
        folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    else:
        base, file, folders = root.parent, root, []
    content = read_file(file) if file.is_file() else {}
    sets = {**{name: SetConfig(root=name) for name in folders}, **_sets(file, content)}
    if not sets:
        raise InputError(f"{root} has no target set", expected=LAYOUT, found="no folder in it, and no sets: in a targets.yaml", remedy=remedy)
    weights = read_weights(file, content, sets)
    found: list[TargetFiles] = []
    for name in sorted(sets):
        samples = _samples(name, sets[name], base)
        for split in SPLITS:
            parts = [
                TargetFiles(name, weights[name], split, label, [path for path, _ in listed], _spans(listed), sets[name].licence)
                for (own, label), listed in sorted(samples.items()) if own == split and listed
            ]  # fmt: skip
            if not parts:
                raise InputError(
                    f"target set {name} has no {split} videos", expected=_expected(sets[name]), found=f"no video of that split below {base / (sets[name].root or '.')}",
                    remedy="add them: training videos are what the pool is compared with, evaluation videos what must stay out of it",
                )  # fmt: skip
            found += parts
    return found


def _spans(listed: list[Sample]) -> tuple[Span | None, ...]:
    spans = tuple(span for _, span in listed)
    return spans if any(spans) else ()


def read_file(path: Path) -> dict[str, Any]:
    """The content of a targets file; raises `InputError` when it is no mapping of the known keys."""
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, OSError, RecursionError) as error:
        raise InputError(f"{path} cannot be read", expected="a YAML file", found=str(error), remedy="mend the file") from error
    known = {"sets", "weights", "relative_weights"}
    content = {} if content is None else content
    if not isinstance(content, dict) or set(content) - known:
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path} does not weigh the target sets", expected="the keys sets, weights or relative_weights", found=found, remedy="mend the file, or delete it for equal weights")
    return content


def _sets(path: Path, content: Mapping[str, Any]) -> dict[str, SetConfig]:
    named = content.get("sets") or {}
    try:
        return {str(name): SetConfig.model_validate(settings or {}) for name, settings in named.items()}
    except (pydantic.ValidationError, AttributeError) as error:
        raise InputError(
            f"{path} does not describe its sets", expected="sets: {NAME: {kind: ..., root: ...}}, keys as in pipelines/sources/target_sets.py",
            found=str(error), remedy="mend the file",
        ) from error  # fmt: skip


def read_weights(path: Path, content: Mapping[str, Any], sets: Mapping[str, SetConfig]) -> dict[str, float]:
    """Share of each set. Shares that do not sum to 1 are an `InputError` with the ones that would; so is a set without."""
    own = {name: config.weight for name, config in sets.items() if config.weight is not None}
    given = {key: value for key, value in (("weights", content.get("weights")), ("relative_weights", content.get("relative_weights")), ("weight", own or None)) if value is not None}
    if not given:
        return dict.fromkeys(sets, 1.0 / len(sets))
    if len(given) > 1:
        raise InputError(f"{path} weighs its sets twice", expected="weight in each set, weights, or relative_weights", found=" and ".join(given), remedy="keep one of them")
    ((key, numbers),) = given.items()
    numbers = numbers if isinstance(numbers, dict) else {}
    good = set(numbers) == set(sets) and all(_is_weight(value) for value in numbers.values())
    total = math.fsum(numbers.values()) if good else 0.0
    if total <= 0:
        raise InputError(
            f"{path} does not weigh the target sets", expected=f"{key}: one number, 0 or more, for each of " + ", ".join(sorted(sets)),
            found=str(given[key]), remedy="mend the file, or delete it for equal weights",
        )  # fmt: skip
    if key != "relative_weights" and abs(total - 1.0) > WEIGHT_TOLERANCE:
        # Not as 1e-9, which YAML takes for a word.
        normalised = ", ".join(f"{name}: {numbers[name] / total:.9f}".rstrip("0").rstrip(".") for name in sorted(numbers))
        raise InputError(
            f"the weights in {path} do not sum to 1", expected="shares of the selection, sum 1", found=f"sum {total:.9g}",
            remedy=f"paste weights: {{{normalised}}}, or call them relative_weights",
        )  # fmt: skip
    return {name: numbers[name] / total for name in sorted(sets)}


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _expected(config: SetConfig) -> str:
    if config.kind == "folder":
        return LAYOUT
    return "rows with split train and with split eval" if config.kind == "manifest" else "videos of both splits under the root"


def _samples(name: str, config: SetConfig, base: Path) -> Samples:
    """The samples of one set, sorted; raises `InputError` when its place or its annotations are missing."""
    if config.kind == "manifest":
        return _from_manifest(base / Path(_needed(name, config, "path")).expanduser(), base / Path(config.root).expanduser() if config.root else None)
    root = base / Path(_needed(name, config, "root")).expanduser()
    if config.kind == "folder":
        return _from_folder(name, root)
    named = config.annotations if config.annotations is not None else str(root)
    found = annotated.annotated_or_error(config.kind, named, root, base)
    for told in found.left_out:
        logger.info("target set %s: %s", name, told)
    samples: Samples = {}
    for item in found.files:
        for span, label in _limited(item.clips, config.clips_per_video):
            samples.setdefault((item.split, label), []).append((item.file.path, span))
    return _sorted(samples)


def _needed(name: str, config: SetConfig, key: str) -> str:
    value = getattr(config, key)
    if not value:
        raise InputError(
            f"target set {name} has no {key}", expected=f"{key}: where its {'rows' if key == 'path' else 'videos'} are", found="nothing",
            remedy=f"write sets: {{{name}: {{kind: {config.kind}, {key}: ...}}}} into the targets file, or take the set out",
        )  # fmt: skip
    return str(value)


def _limited(clips: tuple[annotated.Clip, ...], limit: int) -> Iterable[annotated.Clip]:
    """At most `limit` clips of one video, spread evenly over them; all when it is 0."""
    if not limit or len(clips) <= limit:
        return clips
    return [clips[(2 * number + 1) * len(clips) // (2 * limit)] for number in range(limit)]


def _from_folder(name: str, root: Path) -> Samples:
    """Files below each label's folder, which may be a link, and those right in a split's folder, without a label.

    Raises `InputError` when some video cannot be reached: it would neither be aimed at nor kept out of the pool.
    """
    samples: Samples = {}
    for split in (split for split in SPLITS if (root / split).is_dir()):
        samples[split, ""] = _videos_in(name, root / split, below=False)
        for place in sorted(path for path in (root / split).iterdir() if path.is_dir()):
            samples[split, place.name] = _videos_in(name, place)
    for told in left_out("neither in train nor in eval", [path.name for path in root.iterdir() if path.name not in SPLITS] if samples else []):
        logger.info("target set %s: %s", name, told)
    return samples


def _videos_in(name: str, place: Path, below: bool = True) -> list[Sample]:
    files, others = scan_folder(place, below)
    for told in others:
        logger.info("target set %s: %s", name, told)
    lost = [str(told) for told in others if told.names and told.reason != HIDDEN]
    if lost:
        raise InputError(
            f"target set {name} has videos that cannot be reached", expected=f"files and folders below {place} that can be read", found="; ".join(lost),
            remedy="mend them or take them away; only a label's own folder may be a link",
        )  # fmt: skip
    return [(file.path, None) for file in files]


def _from_manifest(path: Path, root: Path | None) -> Samples:
    """Rows with path, label and split; a path that two rows place differently is an `InputError`."""
    if not path.is_file():
        raise InputError(f"{path} does not exist", expected="a CSV or Parquet file with the columns path, label and split", found="nothing there", remedy="check the path")
    _, rows = manifest.read_rows(path, ("path", "label", "split"))
    places: dict[str, set[tuple[str, str]]] = {}
    for number, row in enumerate(rows, start=1):
        split = split_of(row["split"], f"row {number} of {path}")
        places.setdefault(str((root or path.parent) / row["path"].strip()), set()).add((split, row["label"].strip()))
    torn = sorted(file for file, own in places.items() if len(own) > 1)
    if torn:
        raise InputError(
            f"{path} names {len(torn)} files with two splits or labels", expected="one split and one label for each file", found=first_names(torn),
            remedy="keep one row for each file: what evaluates must not be trained towards",
        )  # fmt: skip
    files = [manifest.stated(file, {}) for file in sorted(places)]
    if all(manifest.is_missing(file) for file in files):
        raise InputError(
            f"{path} names no file that is there", expected="paths relative to the manifest's folder or the set's root",
            found=first_names([file.path for file in files]) or "no rows", remedy="mend the paths, or name the root they start at",
        )  # fmt: skip
    samples: Samples = {}
    for file in files:
        samples.setdefault(next(iter(places[file.path])), []).append((file.path, None))
    return _sorted(samples)


def _sorted(samples: Samples) -> Samples:
    return {place: sorted(listed, key=lambda sample: (sample[0], sample[1] or ())) for place, listed in sorted(samples.items())}


def root_digest(root: Path) -> str:
    """Digest of a root's sets, weights and labels, and of its files' sizes and modification times."""
    parts = read_targets_root(root)
    stats = {path: (file.bytes, file.mtime_ns) for part in parts for path in part.files for file in (manifest.stated(path, {}),)}
    return digest_of([[recorded(part) for part in parts], stats])


def recorded(part: TargetFiles) -> dict[str, Any]:
    """A part as JSON-able data, without what is empty."""
    return {name: value for name, value in asdict(part).items() if value not in ("", ()) or name == "label"}
