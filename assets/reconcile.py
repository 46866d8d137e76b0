"""Runs whose process is gone. Dagster does not notice a dead local worker by itself; this does."""

from __future__ import annotations

import logging
import os
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg

from pipelines.store import Store

logger = logging.getLogger("tubelet.reconcile")
ALIVE_STATES = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
START_TOLERANCE = timedelta(seconds=2)


def reconcile_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs failed whose process no longer exists on this machine, free their slots; returns their ids.

    A run tells its process id in its event log. A living process of that number counts only when it is at least as old
    as the event, since numbers are used again after a reboot. Runs on other machines (a shared database) are not seen
    as living here, so keep one machine per SQLite store.
    """
    ended = []
    for record in instance.get_run_records(dg.RunsFilter(statuses=ALIVE_STATES)):
        run = record.dagster_run
        if _process_lives(instance, run.run_id):
            continue
        instance.report_run_failed(run, "The run's process is gone (killed, or the machine went down); ended by reconcile.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        ended.append(run.run_id)
    return ended


def _process_lives(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether the last process that spoke for the run is still there; unknown counts as living."""
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT).records
    for record in reversed(records):
        event = record.event_log_entry.dagster_event
        metadata = event.engine_event_data.metadata if event else {}
        if "pid" not in metadata:
            continue
        spoken = datetime.fromtimestamp(record.event_log_entry.timestamp)
        return lives_since(int(str(metadata["pid"].value)), spoken)
    return True


def lives_since(pid: int, moment: datetime) -> bool:
    """Whether process `pid` exists now and already existed at `moment` (local time)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return False
        return _answers(pid)
    if fields[0] == "Z":
        return False
    started = datetime.fromtimestamp(int(boot.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    return started <= moment + START_TOLERANCE


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def clear_leases(store: Store) -> list[str]:
    """Take away the leases of trainings whose supervisor is gone; returns their folders."""
    from pipelines.training import launcher

    lost = launcher.reconcile(store.root)
    for lease in lost:
        launcher.clear(lease)
    return [lease.folder for lease in lost]


def reconcile_store(store: Store) -> int:
    """`tubelet reconcile`: end lost runs, clear lost leases, and say which."""
    with store.writing(), dg.DagsterInstance.get() as instance:
        ended = reconcile_runs(instance)
    folders = clear_leases(store)
    logger.info("ended %d lost runs%s", len(ended), ": " + ", ".join(ended) if ended else "")
    logger.info("cleared %d lost leases%s", len(folders), ": " + ", ".join(folders) if folders else "")
    return 0
