"""What Dagster's events say beside what the store's files say: files outlive the database, so files are the truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from pipelines.lineage.scrub.files import collect
from pipelines.lineage.scrub.finding import Finding, Kind, Note, words_of
from pipelines.lineage.scrub.graph import Pointer
from pipelines.store import NO_PARTITION, Artefact, key_of

DATABASE = "dagster"
"""Dagster's folder in a store."""
REMEMBERED = 1000
"""Materializations of one key that are looked through for a version."""


def recorded_version(instance: dg.DagsterInstance, asset: str, partition: str | None = None) -> str | None:
    """Data version of the newest materialization that Dagster remembers; None when it remembers none."""
    return next(iter(recorded_versions(instance, asset, partition, limit=1)), None)


def recorded_versions(instance: dg.DagsterInstance, asset: str, partition: str | None = None, limit: int = REMEMBERED) -> list[str | None]:
    """Data versions of the materializations that Dagster remembers, newest first."""
    wanted = dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[partition] if partition else None)
    events = [record.asset_materialization for record in instance.fetch_materializations(wanted, limit=limit).records]
    return [(event.tags or {}).get(DATA_VERSION_TAG) for event in events if event]


def observed_version(instance: dg.DagsterInstance, asset: str) -> str | None:
    """Data version of the newest observation of a source."""
    records = instance.fetch_observations(dg.AssetKey(asset), limit=1).records
    event = records[0].event_log_entry.asset_observation if records else None
    return (event.tags or {}).get(DATA_VERSION_TAG) if event else None


def has_database(root: Path) -> bool:
    """Whether Dagster remembers anything of the store at `root`; asking Dagster itself would make a database."""
    return any((root / DATABASE / "history").rglob("*.db"))


def dagster_says(root: Path, artefacts: Sequence[Artefact]) -> dict[str, Any]:
    """`agreement` with the database of the store at `root`; where there is none, `of` is 0 and none is made; `why` when it cannot be read."""
    if not has_database(root):
        return {"agree": 0, "of": 0, "differ": []}
    try:
        with dg.DagsterInstance.get() as instance:
            return agreement(instance, artefacts)
    except Exception as error:  # a damaged database raises its driver's errors; the files tell everything without it
        return {"agree": 0, "of": 0, "differ": [], "why": words_of(error)}


def agreement(instance: dg.DagsterInstance, artefacts: Sequence[Artefact]) -> dict[str, Any]:
    """Whether Dagster remembers each artefact, current or older, under its digest: {agree, of, differ: [{artefact, digest, newest}]}."""
    differ = []
    for item in artefacts:
        versions = recorded_versions(instance, item.asset, None if item.partition == NO_PARTITION else item.partition)
        if item.digest not in versions:
            differ.append({"artefact": item.key, "digest": item.digest, "newest": versions[0] if versions else None})
    return {"agree": len(artefacts) - len(differ), "of": len(artefacts), "differ": differ}


def recorded_findings(instance: dg.DagsterInstance, root: Path) -> Iterator[Finding | Note]:
    """Where Dagster's newest data version of an asset's partition is not what the store's `current` pointer names.

    A version that is in the store and has not passed its checks is no disagreement: consumers keep what they had.
    """
    held = {item.manifest.digest for item in collect(root, lambda told: None).items.values()}
    pointers = {(path.parent.name, path.stem): path for path in sorted((root / "current").glob("*/*.json"))}
    for asset, partition in sorted({*pointers, *_remembered(instance)}):
        key, file = key_of(asset, partition), f"current/{asset}/{partition}.json"
        newest = recorded_version(instance, asset, None if partition == NO_PARTITION else partition)
        try:
            current = Pointer.model_validate_json(pointers[asset, partition].read_bytes()).digest if (asset, partition) in pointers else None
        except (OSError, ValueError):
            continue  # a finding of the files' scrub
        if newest is None:
            yield Note(key, file, "Dagster remembers no materialization of it")
        elif newest in held and newest != current and not (root / "validated" / f"{newest}.json").exists():
            yield Note(key, file, f"Dagster's newest, {newest}, has not passed its checks, so {current or 'nothing'} is current")
        elif newest != current:
            yield Finding(
                Kind.RECORDED, key, file, f"{newest}, the newest that Dagster remembers", current or "no pointer",
                f"materialize {key} again: what is there is found, checked, made current and recorded",
            )  # fmt: skip


def _remembered(instance: dg.DagsterInstance) -> Iterator[tuple[str, str]]:
    """(asset, partition) of everything that Dagster remembers a materialization of."""
    for key in instance.all_asset_keys():
        partitions = instance.get_materialized_partitions(key)
        if partitions:
            yield from ((key.to_user_string(), partition) for partition in partitions)
        elif recorded_version(instance, key.to_user_string()):
            yield key.to_user_string(), NO_PARTITION
