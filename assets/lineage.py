"""What Dagster's events say beside what the store's files say: files outlive the database, so files are the truth."""

from __future__ import annotations

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG


def recorded_version(instance: dg.DagsterInstance, asset: str, partition: str | None = None) -> str | None:
    """Data version of the newest materialization that Dagster remembers; None when it remembers none."""
    wanted = dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[partition] if partition else None)
    records = instance.fetch_materializations(wanted, limit=1).records
    event = records[0].asset_materialization if records else None
    return (event.tags or {}).get(DATA_VERSION_TAG) if event else None


def observed_version(instance: dg.DagsterInstance, asset: str) -> str | None:
    """Data version of the newest observation of a source."""
    records = instance.fetch_observations(dg.AssetKey(asset), limit=1).records
    event = records[0].event_log_entry.asset_observation if records else None
    return (event.tags or {}).get(DATA_VERSION_TAG) if event else None
