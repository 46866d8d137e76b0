"""Scrub, what was trained and deployed: checkpoints against what went into them, episodes, weight files, bundles and robots."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipelines.errors import TubeletError
from pipelines.lineage.exposure import LINEAGE_FILE, ORDER, ExposureSpec, log_disagreements
from pipelines.lineage.scrub.finding import Finding, Kind, Told, several, words_of
from pipelines.lineage.scrub.rows import Comparison, insist_on_unique
from pipelines.lineage.scrub.shelf import Item, Shelf, Unjudged
from pipelines.schemas import EPISODES, EXPOSURE_LOG, STEPS
from pipelines.shards.exposure_log import LOG_FILE
from pipelines.shards.mixture import open_mixture
from pipelines.tombstones import takedown_names

TRAINED = ("pretrained_encoder", "cooled_encoder")
EPISODE_FILE, STEP_FILE = "episodes.parquet", "steps.parquet"
ARTEFACTS = 4  # parts of a place: artefacts/<asset>/<partition>/<identity>


def check_exposures(shelf: Shelf, item: Item) -> Told:
    """What a checkpoint says it has seen are shards among its inputs, and before that what its parent has seen."""
    lineage = shelf.json(item, LINEAGE_FILE, dict)
    phases = list(lineage.get("exposures", []))
    if not phases:
        yield item.finding(Kind.EXPOSURE, LINEAGE_FILE, "the phases that it was trained in", "none", "train it again")
        return
    if phases[-1].get("order") != ORDER:
        raise Unjudged(f"its samples were drawn by the rule of order {phases[-1].get('order', 1)}, and this version knows that of order {ORDER}")
    spec = ExposureSpec.from_dict(phases[-1])
    shards = {digest for parent in shelf.inputs(item, "training_shards") for digest in parent.digests}
    named = {digest for digest in (spec.shards_digest, lineage.get("shards")) if digest}
    if named - shards:
        yield item.finding(Kind.EXPOSURE, LINEAGE_FILE, f"training_shards among its inputs: {several(sorted(shards))}", f"others: {several(sorted(named - shards))}", "restore the shards, or train it again")
    parents = [parent for asset in TRAINED for parent in shelf.inputs(item, asset)]
    digests = {digest for parent in parents for digest in parent.digests}
    if isinstance(lineage.get("parent"), str) and lineage["parent"] not in digests:
        yield item.finding(Kind.PARENT, LINEAGE_FILE, f"its parent among its inputs: {several(sorted(digests))}", lineage["parent"], "restore the parent, or train it again")
        return
    before = [phase for parent in parents for phase in shelf.json(parent, LINEAGE_FILE, dict).get("exposures", [])]
    if phases[:-1] != before:
        yield item.finding(Kind.EXPOSURE, LINEAGE_FILE, f"the {len(before)} phases of its parent before its own", f"{len(phases[:-1])} that are not those", "train it again")
    gone = sorted({name for _, names in spec.exclusions for name in names} - set(takedown_names(shelf.root)))
    if gone:
        yield item.finding(Kind.TAKEDOWN, LINEAGE_FILE, "the tombstones that were in force while it was trained", f"no tombstones of {several(gone)}", "restore them: what it has seen cannot be told without")


def check_exposure_log(shelf: Shelf, item: Item) -> Told:
    """What every sample showed, where a training wrote it down, is what its lineage says when it is drawn again."""
    if LOG_FILE not in item.manifest.files:
        return
    phases = list(shelf.json(item, LINEAGE_FILE, dict).get("exposures", []))
    if not phases or phases[-1].get("order") != ORDER:
        raise Unjudged("its samples cannot be drawn again")
    spec, log = ExposureSpec.from_dict(phases[-1]), shelf.table(item, LOG_FILE, EXPOSURE_LOG)
    own = [parent.folder for parent in shelf.inputs(item, "training_shards") if parent.manifest.digest == spec.shards_digest]
    if spec.shards_digest and not own:
        raise Unjudged("the shards that it names are not among its inputs")
    try:
        problems = log_disagreements(open_mixture(spec.mixture, own[0] if own else None), spec, shelf.root, log)
    except TubeletError as error:
        raise Unjudged(words_of(error)) from error
    for problem in problems:
        yield item.finding(Kind.EXPOSURE, LOG_FILE, "the samples that its lineage names", problem, "one of the two is not what was trained: train it again")


def check_roles(shelf: Shelf, item: Item) -> Told:
    """The episodes that a world model learned from, and was judged on, are those it was given."""
    used = shelf.json(item, LINEAGE_FILE, dict)["episodes"]
    given = {name for parent in shelf.inputs(item, "robot_episodes") for name in shelf.table(parent, EPISODE_FILE, EPISODES, ["episode_id"]).column("episode_id").to_pylist()}
    strange = sorted({name for names in used.values() for name in names} - given)
    if strange:
        yield item.finding(Kind.EXPOSURE, LINEAGE_FILE, "episodes of its robot_episodes", f"others: {several(strange)}", "train it again")


def check_episode_videos(shelf: Shelf, item: Item) -> Told:
    """Every episode's video is in the artefact, with the digest that the episode's row gives."""
    table = shelf.table(item, EPISODE_FILE, EPISODES, ["episode_id", "video", "sha256"])
    files = item.manifest.files
    wrong = [row["episode_id"] for row in table.to_pylist() if row["video"] not in files or files[row["video"]].sha256 != row["sha256"]]
    if wrong:
        yield item.finding(Kind.EPISODE_VIDEO, EPISODE_FILE, "videos of the artefact, with their sha256", f"others in {several(wrong)}")


def check_episode_steps(shelf: Shelf, item: Item) -> Told:
    """Every episode has its steps, numbered from 0, at times that increase, and there are no others."""
    table = shelf.table(item, EPISODE_FILE, EPISODES, ["episode_id", "steps"])
    steps = shelf.table(item, STEP_FILE, STEPS, ["episode_id", "step", "t_s"])
    insist_on_unique(table, item, EPISODE_FILE, ("episode_id",))
    insist_on_unique(steps, item, STEP_FILE, ("episode_id", "step"))
    steps = steps.take(pc.sort_indices(steps, sort_keys=[("episode_id", "ascending"), ("step", "ascending")]))
    wanted = dict(zip(table.column("episode_id").to_pylist(), table.column("steps").to_pylist(), strict=True))
    names = np.array(steps.column("episode_id").to_pylist(), object)
    borders = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1).tolist(), len(names)] if len(names) else [0]
    numbers, times = steps.column("step").to_numpy(), steps.column("t_s").to_numpy()
    wrong = set(wanted) - set(names)
    for start, end in itertools.pairwise(borders):
        numbered = np.array_equal(numbers[start:end], np.arange(end - start)) and bool((np.diff(times[start:end]) > 0).all())
        if not numbered or wanted.get(names[start]) != end - start:
            wrong.add(names[start])
    if wrong:
        yield item.finding(Kind.EPISODE_STEPS, STEP_FILE, "as many steps as each episode says, numbered from 0, later and later", f"others for {several(sorted(wrong))}")


def check_networks(shelf: Shelf, item: Item) -> Told:
    """Every weight file can be read, and every weight is finite."""
    names = [name for name in item.manifest.files if name.endswith(".safetensors") and item.where(name) not in shelf.damaged]
    if not names:
        return
    from safetensors import safe_open

    for name in names:
        bad = []
        try:
            with safe_open(item.folder / name, framework="pt") as weights:
                for tensor in weights.keys():  # noqa: SIM118  # not a dict
                    value = weights.get_tensor(tensor)
                    if value.is_floating_point() and not bool(value.isfinite().all()):
                        bad.append(tensor)
        except Exception as error:  # readers of damaged files raise all kinds of errors
            yield item.finding(Kind.UNREADABLE, name, "a safetensors file", words_of(error))
            continue
        if bad:
            yield item.finding(Kind.NETWORK, name, "finite weights", f"others in {several(bad)}", "train it again")


def check_bundle(shelf: Shelf, item: Item) -> Told:
    """A bundle carries the digest that its folder and the artefact's summary name, and its lineage is the artefact's own."""
    folder = str(item.manifest.summary["folder"])
    inner = shelf.json(item, f"{folder}/manifest.json", dict)
    said = {"summary": item.manifest.summary["bundle"], "folder": folder, "manifest": inner["bundle"]}
    if len(set(said.values())) > 1:
        yield item.finding(Kind.BUNDLE, f"{folder}/manifest.json", "one bundle digest", ", ".join(f"{digest} ({name})" for name, digest in said.items()))
    files = {name.removeprefix(f"{folder}/"): entry.sha256 for name, entry in item.manifest.files.items()}
    other = sorted(name for name, sha256 in inner["files"].items() if files.get(name) != sha256)
    if other:
        yield item.finding(Kind.BUNDLE, f"{folder}/manifest.json", "the sha256 of the bundle's members", f"others for {several(other)}")
    known = _ancestry(shelf, item)
    made_from = shelf.json(item, f"{folder}/{LINEAGE_FILE}", dict)["made_from"]
    strange = sorted(key for key, digest in made_from.items() if digest not in known.get(key, set()))
    if strange:
        yield item.finding(Kind.PARENT, f"{folder}/{LINEAGE_FILE}", "digests of what the artefact was made from", f"others for {several(strange)}")


def _ancestry(shelf: Shelf, item: Item) -> dict[str, set[str]]:
    """{key: digests} of all that `item` was made from; raises `Unjudged` when some of it is gone."""
    found: dict[str, set[str]] = {}
    seen, waiting = {item.place}, [item]
    while waiting:
        for place in waiting.pop().manifest.input_paths.values():
            if place not in shelf.items:
                raise Unjudged(f"{place} is gone")
            parent = shelf.items[place]
            found.setdefault(parent.key, set()).update(parent.digests)
            if place not in seen:
                seen.add(place)
                waiting.append(parent)
    return found


def check_deployment(shelf: Shelf, item: Item) -> Told:
    """The bundle that a robot's agent proved to run is the one it was given."""
    given = {str(parent.manifest.summary.get("bundle")) for parent in shelf.inputs(item, "robot_bundle")}
    if str(item.manifest.summary["bundle"]) not in given:
        yield item.finding(Kind.BUNDLE, "", f"bundle {several(sorted(given))}", f"bundle {item.manifest.summary['bundle']}", "deploy again")


def check_robots(shelf: Shelf) -> Told:
    """Each robot's pointer names a bundle of this store, under its digest."""
    for path in sorted((shelf.root / "targets").glob("*/current.json")):
        file, again = path.relative_to(shelf.root).as_posix(), "deploy again to this robot (job deploy)"
        try:
            pointer: dict[str, Any] = json.loads(path.read_text())
            robot, bundle, place = (str(pointer[name]) for name in ("robot", "bundle", "path"))
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            yield Finding(Kind.UNREADABLE, "", file, "robot, bundle and path", words_of(error), again)
            continue
        parts = place.split("/")
        item = shelf.items.get("/".join(parts[:ARTEFACTS]))
        if robot != path.parent.name:
            yield Finding(Kind.ROBOT_POINTER, "", file, f"robot {path.parent.name}", f"robot {robot}", again)
        elif item is None or item.asset != "robot_bundle" or "/".join(parts[ARTEFACTS:]) != item.manifest.summary.get("folder"):
            yield Finding(Kind.ROBOT_POINTER, "", file, f"bundle {bundle} in {place}", "no bundle of this store there", again)
        elif bundle != item.manifest.summary.get("bundle"):
            yield Finding(Kind.ROBOT_POINTER, item.name, file, f"bundle {item.manifest.summary.get('bundle')}", f"bundle {bundle}", again)


COMPARISONS = (
    Comparison("what the checkpoint has seen", TRAINED, check_exposures),
    Comparison("the log of what it was shown", TRAINED, check_exposure_log, reads_bytes=True),
    Comparison("episodes of the world model", ("world_model",), check_roles),
    Comparison("videos of the episodes", ("robot_episodes",), check_episode_videos),
    Comparison("steps of the episodes", ("robot_episodes",), check_episode_steps),
    Comparison("weight files", (), check_networks, reads_bytes=True),
    Comparison("the bundle", ("robot_bundle",), check_bundle),
    Comparison("the deployment", ("robot_deployment",), check_deployment),
)
