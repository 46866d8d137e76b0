"""The body every asset shares: make what the plan names, judge it, accept it, and say so to Dagster and to a person.

A `Plan` is what one materialization would make, worked out before anything is made. The assets carry it out; the main
job asks it whether there is anything to do.
"""

from __future__ import annotations

import base64
import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from assets.launchers import TrainLauncher
from assets.pulse import Pulse
from assets.resources import StoreResource
from pipelines.checks import Check, failed
from pipelines.errors import StoreError, TubeletError
from pipelines.store import Artefact, Store

logger = logging.getLogger("tubelet.stage")
PICTURE_LIMIT = 100_000
"""Bytes; inline pictures live in Dagster's database and travel with every query."""


@dataclass(frozen=True)
class Task:
    """What a build function is given: an empty `folder` to fill and the ways to talk and to train."""

    folder: Path
    work_folder: Path
    context: dg.AssetExecutionContext
    pulse: Pulse
    trainer: TrainLauncher | None = None

    @property
    def progress(self) -> Callable[..., None]:
        return self.pulse.progress

    def train(self, jobs: Sequence[Any], done: Sequence[Path], observe: Callable[[], dict[str, Any]] | None = None) -> None:
        """Run training jobs to their end, out of process; raises unless every marker in `done` exists afterwards. Meanwhile
        `observe` gives what the asset's page shows now and then."""
        self.launcher.run(self.context, jobs, work_folder=self.work_folder, done=done, heard=self.pulse.heard, observe=observe)

    @property
    def launcher(self) -> TrainLauncher:
        if self.trainer is None:
            raise StoreError("this stage was given no launcher", expected="a TrainLauncher resource", found="none")
        return self.trainer


@dataclass(frozen=True)
class Plan:
    """One materialization before it happens. `config` and `inputs` are everything its identity depends on."""

    asset: str
    build: Callable[[Task], dict[str, Any]]
    check: Callable[[Artefact], dict[str, Check]]
    inputs: Sequence[Artefact] = ()
    config: dict[str, Any] = field(default_factory=dict)
    partition: str | None = None
    code_version: str = "1"
    highlights: tuple[str, ...] = ()
    publish: Callable[[Artefact], None] | None = None
    """Called after the artefact was accepted, also when it was found made (a pointer outside the store's own)."""
    in_parts: bool = False
    """The work folder holds the parts of an unfinished build, of no use once the artefact is there."""
    looks_outside: bool = False
    """What is built depends on files outside the store: an artefact that failed its checks is made anew when asked again."""
    published: Callable[[Artefact], bool] | None = None

    @property
    def key(self) -> str:
        return self.asset if self.partition is None else f"{self.asset}[{self.partition}]"

    @property
    def identity(self) -> str:
        config = json.loads(json.dumps(self.config))
        return Store.identity(self.asset, self.partition, config, self.inputs, self.code_version)

    def find(self, store: Store) -> Artefact | None:
        """The artefact when it was made before, whether or not it passed its checks."""
        path = store.folder("artefacts", self.asset, self.partition, self.identity)
        return store.load(path, reused=True) if (path / "MANIFEST.json").exists() else None


def blocking(asset: str, *names: str) -> list[dg.AssetCheckSpec]:
    """Specs of checks an asset reports itself; a failed one keeps the artefact from being used and stops the run."""
    return [dg.AssetCheckSpec(name, asset=asset, blocking=True) for name in names]


def advisory(asset: str, *names: str) -> list[dg.AssetCheckSpec]:
    """Specs of checks on how good a result is: a failed one is a warning, and the result is there to be looked at."""
    return [dg.AssetCheckSpec(name, asset=asset, blocking=False) for name in names]


def carry_out(
    context: dg.AssetExecutionContext,
    storage: StoreResource,
    plan: Callable[[Store], Plan],
    trainer: TrainLauncher | None = None,
) -> dg.MaterializeResult:
    """Materialize what `plan(store)` names: reuse or build, check, accept, report.

    Raises `dg.Failure` with expected, found and remedy.
    """
    started = time.monotonic()
    try:
        store = storage.open()
        made = plan(store)
        artefact = _produce(context, store, made, trainer)
        checks = made.check(artefact)
        gates = _insist_on_declared(context, made.key, checks)
        if not failed({name: check for name, check in checks.items() if name in gates}):
            store.accept(artefact, {name: check.to_dict() for name, check in checks.items()})
            if made.publish is not None:
                made.publish(artefact)
    except TubeletError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
    logger.info(closing_line(artefact, made.highlights, time.monotonic() - started))
    return dg.MaterializeResult(
        metadata=metadata_of(artefact),
        data_version=dg.DataVersion(artefact.digest),
        check_results=[_check_result(name, check, name in gates) for name, check in checks.items()],
    )


def _produce(
    context: dg.AssetExecutionContext, store: Store, plan: Plan, trainer: TrainLauncher | None
) -> Artefact:
    work = store.folder("work", plan.asset, plan.partition, plan.identity)

    def build(folder: Path) -> dict[str, Any]:
        with Pulse(plan.key, event=context.log.info) as pulse:
            return plan.build(Task(folder, work, context, pulse, trainer))

    rejected = plan.find(store) if plan.looks_outside else None
    if rejected is not None and not store.is_validated(rejected):
        store.discard(rejected)
    artefact = store.produce(
        plan.asset, build, inputs=plan.inputs, config=plan.config, partition=plan.partition,
        code_version=plan.code_version,
    )  # fmt: skip
    if plan.in_parts:
        shutil.rmtree(work, ignore_errors=True)
    return artefact


def _insist_on_declared(context: dg.AssetExecutionContext, key: str, checks: dict[str, Check]) -> set[str]:
    """Names of the blocking checks; raises when what was reported is not what was declared."""
    declared = {spec.name for spec in context.assets_def.check_specs}
    if declared != set(checks):
        raise StoreError(
            f"{key} reported other checks than it declares", expected=", ".join(sorted(declared)),
            found=", ".join(sorted(checks)), remedy="name the same checks in assets/ and in the stage's check function",
        )  # fmt: skip
    return {spec.name for spec in context.assets_def.check_specs if spec.blocking}


def _check_result(name: str, check: Check, blocks: bool) -> dg.AssetCheckResult:
    metadata = {"expected": check.expected, "found": check.found}
    if check.remedy:
        metadata["remedy"] = check.remedy
    severity = dg.AssetCheckSeverity.ERROR if blocks else dg.AssetCheckSeverity.WARN
    return dg.AssetCheckResult(
        check_name=name, passed=check.passed, metadata=metadata, description=check.found, severity=severity
    )


def metadata_of(artefact: Artefact) -> dict[str, Any]:
    """What the catalogue shows: pictures first, then numbers (Dagster plots floats over time), then where and from what."""
    metadata: dict[str, Any] = {Path(name).stem: picture(artefact.path / name) for name in artefact.summary.get("pictures", [])}
    for name, value in artefact.summary.items():
        if name != "pictures" and value is not None:
            metadata[name] = value if isinstance(value, bool | int | float | str) else dg.MetadataValue.json(value)
    return {
        **metadata,
        "dagster/uri": artefact.path.as_uri(),
        "folder": dg.MetadataValue.path(artefact.path),
        "digest": artefact.digest,
        "build_seconds": float(artefact.seconds),
        "reused": artefact.reused,
        "config": dg.MetadataValue.json(artefact.config),
        "inputs": dg.MetadataValue.json(artefact.inputs),
    }


def picture(path: Path) -> dg.MetadataValue:
    """A picture inline when it is small enough, else where it is."""
    data = path.read_bytes()
    if len(data) > PICTURE_LIMIT:
        return dg.MetadataValue.path(path)
    kind = path.suffix.removeprefix(".")
    return dg.MetadataValue.md(f"![{path.name}](data:image/{kind};base64,{base64.b64encode(data).decode()})")


def closing_line(artefact: Artefact, highlights: Sequence[str], seconds: float) -> str:
    """One line for the console: name, seconds, key numbers."""
    numbers = {name: value for name, value in artefact.summary.items() if isinstance(value, bool | int | float | str)}
    chosen = highlights or tuple(name for name in numbers if name not in {"cpu_seconds", "seconds"})[:4]
    shown = "  ".join(f"{name} {_short(numbers[name])}" for name in chosen if name in numbers)
    word = "found made" if artefact.reused else f"{seconds:6.1f} s"
    return f"  {artefact.key:<32} {word:>10}  {shown}"


def _short(value: bool | int | float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
