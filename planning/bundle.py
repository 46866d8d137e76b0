"""The deployment bundle: one content-addressed folder with everything an agent needs, safetensors, JSON and PNG only.

Layout of `<bundle digest>/`::

    manifest.json       schema, recipe, sha256 of every member; `bundle` is the digest over all of that
    SHA256SUMS          the same sums and the manifest's own, for `sha256sum -c`
    encoder.* predictor.* preprocess.json    the world model
    planner.json        planner configuration, steps per episode, task distances (m)
    safety.json         the gate's limits
    lineage.json        what it was made from      evidence.json  what was measured
    goals/reach/        goal.png and task.json: a goal the evaluation solved, to prove a deployment with
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import TubeletError
from pipelines.identity import digest_of, file_sha256
from pipelines.recipes import Recipe
from planning.goals import write_goal
from planning.planners import Planner, make_planner
from planning.robots.simulated import SimulatedRobot, simulated_limits
from planning.safety import SafetyLimits, limits_from
from planning.setups import make_setup
from planning.world_model import WorldModel

SCHEMA = 1
MANIFEST, SUMS = "manifest.json", "SHA256SUMS"
NETWORK_FILES = ("encoder.safetensors", "encoder.json", "predictor.safetensors", "predictor.json", "preprocess.json")
SUFFIXES = frozenset({".safetensors", ".json", ".png"})
GOAL, GOAL_TASK = "goals/reach/goal.png", "goals/reach/task.json"
DIGEST_LENGTH = 32


class BundleError(TubeletError):
    """A bundle is not what its name says, or holds what no bundle may hold."""


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. Loading anything goes through the sums that were checked."""

    path: Path
    digest: str
    recipe: str

    def json(self, name: str) -> dict[str, Any]:
        """One JSON member."""
        return json.loads((self.path / name).read_text())

    def world_model(self) -> WorldModel:
        return WorldModel.load(self.path)

    def planner(self) -> Planner:
        return make_planner(self.json("planner.json")["planner"])

    def limits(self) -> SafetyLimits:
        return limits_from(self.json("safety.json"))


def build_bundle(
    folder: Path, world_model_folder: Path, recipe: Recipe, lineage: dict[str, Any], planning: dict[str, Any]
) -> dict[str, Any]:
    """Write the bundle into `folder/<bundle digest>` and return the summary.

    `lineage` is kept as it is; `planning` is the summary of `build_planning_results`, whose filmed episode becomes the
    bundle's own goal. Equal contents get the equal name: times are left out of the evidence.
    """
    draft = folder / "draft"
    (draft / "goals" / "reach").mkdir(parents=True)
    for name in NETWORK_FILES:
        shutil.copyfile(world_model_folder / name, draft / name)
    rules = recipe.planning
    _write(draft / "planner.json", {
        "planner": make_planner(rules.planner, rules.box).model_dump(mode="json"), "steps": rules.steps,
        "min_start_distance": rules.min_start_distance, "success_distance": rules.success_distance,
    })  # fmt: skip
    _write(draft / "safety.json", simulated_limits().model_dump(mode="json"))
    _write(draft / "lineage.json", lineage)
    evidence = [{name: value for name, value in row.items() if name != "seconds_per_action"} for row in planning["rows"]]
    _write(draft / "evidence.json", {"rows": evidence, "seed": planning["seed"]})
    _write_goal(draft, planning["filmed"], recipe)
    files = {name: file_sha256(draft / name) for name in _members(draft)}
    contents = {"schema": SCHEMA, "recipe": recipe.name, "recipe_digest": recipe.digest(), "files": files}
    digest = digest_of(contents, DIGEST_LENGTH)
    _write(draft / MANIFEST, {"bundle": digest, **contents})
    sums = {**files, MANIFEST: file_sha256(draft / MANIFEST)}
    (draft / SUMS).write_text("".join(f"{value}  {name}\n" for name, value in sorted(sums.items())))
    draft.rename(folder / digest)
    size = sum((folder / digest / name).stat().st_size for name in sums)
    return {"bundle": digest, "folder": digest, "files": len(sums), "bytes": size, "recipe": recipe.name}


def bundle_folder(artefact: Path) -> Path:
    """The one bundle inside a `robot_bundle` artefact folder."""
    found = sorted(path.parent for path in artefact.glob(f"*/{MANIFEST}"))
    if len(found) != 1:
        raise BundleError(
            f"{artefact} does not hold one bundle", expected="one folder with manifest.json", found=f"{len(found)}",
            remedy="materialize robot_bundle again",
        )  # fmt: skip
    return found[0]


def verify_bundle(folder: Path) -> Bundle:
    """Check every byte against the sums and the name; raises BundleError that names the file that is wrong.

    A member that is missing, changed, extra, a link, or of a kind that can carry code (a pickle under any name but a
    JSON's or PNG's is caught by its suffix, and a changed member by its sum) refuses the whole bundle.
    """
    manifest_path = folder / MANIFEST
    try:
        manifest = json.loads(manifest_path.read_text())
        files, digest = dict(manifest["files"]), str(manifest["bundle"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{manifest_path} cannot be read", expected="the manifest of a bundle", found=repr(error), remedy="build the bundle again") from error
    if manifest.get("schema") != SCHEMA:
        raise BundleError(f"{folder} is a bundle of another version", expected=f"schema {SCHEMA}", found=str(manifest.get("schema")))
    present = set(_members(folder)) - {MANIFEST, SUMS}
    for name in sorted(present | set(files)):
        _check_member(folder, name, name in present, files.get(name))
    contents = {name: value for name, value in manifest.items() if name != "bundle"}
    if digest_of(contents, DIGEST_LENGTH) != digest:
        raise BundleError(f"{manifest_path} was changed", expected=f"bundle digest {digest}", found=digest_of(contents, DIGEST_LENGTH), remedy="build the bundle again")
    if folder.name != digest:
        raise BundleError(f"{folder} carries another bundle's name", expected=digest, found=folder.name, remedy="never rename a bundle")
    wanted = "".join(f"{value}  {name}\n" for name, value in sorted({**files, MANIFEST: file_sha256(manifest_path)}.items()))
    if not (folder / SUMS).is_file() or (folder / SUMS).read_text() != wanted:
        raise BundleError(f"{folder / SUMS} does not agree with the manifest", remedy="build the bundle again")
    return Bundle(folder, digest, str(manifest["recipe"]))


def check_bundle(folder: Path) -> Bundle:
    """Verify, and load everything once, so that a bundle that cannot start is never deployed."""
    bundle = verify_bundle(folder)
    bundle.world_model()
    bundle.planner()
    bundle.limits()
    return bundle


def _check_member(folder: Path, name: str, present: bool, expected: str | None) -> None:
    path = folder / name
    problem = None
    if not present:
        problem = "is missing"
    elif path.is_symlink():
        problem = "is a link"
    elif path.suffix not in SUFFIXES:
        problem = f"is no {', '.join(sorted(SUFFIXES))} file: a bundle may not carry anything that can run"
    elif expected is None:
        problem = "is not in the manifest"
    elif file_sha256(path) != expected:
        problem = "was changed"
    if problem:
        raise BundleError(f"bundle {folder.name}: {name} {problem}", expected=f"sha256 {expected}", remedy="take the bundle from the store again")


def _members(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()]


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True))


def _write_goal(draft: Path, filmed: dict[str, Any], recipe: Recipe) -> None:
    rules, seed = recipe.planning, int(filmed["setup_seed"])
    setup = make_setup(seed, min_distance=rules.min_start_distance, solved_distance=rules.success_distance)
    robot = SimulatedRobot(setup, size=(recipe.posttraining.height, recipe.posttraining.width))
    robot.connect()
    try:
        write_goal(draft / GOAL, robot.goal_image())
    finally:
        robot.close()
    _write(draft / GOAL_TASK, {"setup_seed": seed, "solved_in_evaluation": bool(filmed["success"])})
