"""The scrub with Dagster beside it: the database against the files, without a database, and as a job that fails readably."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from typer.testing import CliRunner

import tubelet
from assets.definitions import defs
from assets.resources import StoreResource, export_environment
from assets.scrub import scrub_store
from pipelines.lineage.scrub.finding import Kind
from pipelines.lineage.scrub.text import scrub_text
from pipelines.store import Artefact, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def make(store: Store, content: str, *, accept: bool = True) -> Artefact:
    """An artefact of an asset whose tables nobody reads."""

    def build(folder: Path) -> dict[str, Any]:
        (folder / "page.html").write_text(content)
        return {}

    made = store.produce("encoder_report", build, partition="nano", config={"content": content})
    if accept:
        store.accept(made, {})
    return made


def record(instance: dg.DagsterInstance, made: Artefact) -> None:
    """Remember a materialization with the artefact's digest as its data version."""

    @dg.asset(name=made.asset, partitions_def=dg.StaticPartitionsDefinition(["nano"]))
    def asset() -> dg.MaterializeResult:
        return dg.MaterializeResult(data_version=dg.DataVersion(made.digest))

    assert dg.materialize([asset], instance=instance, partition_key="nano").success


def test_dagster_and_the_files_agree_until_the_pointer_is_another(store: Store) -> None:
    first, second = make(store, "first"), make(store, "second")
    with dg.DagsterInstance.ephemeral() as instance:
        record(instance, second)
        agreeing = scrub_store(store.root, instance=instance)
        assert not agreeing.findings and not agreeing.notes
        store.accept(first, {})
        (finding,) = scrub_store(store.root, instance=instance).findings
        assert (finding.kind, finding.file, finding.found) == (Kind.RECORDED, "current/encoder_report/nano.json", first.digest)
        assert second.digest in finding.expected
        assert scrub_store(store.root, ["encoder_report[nano]"], instance=instance).findings == (finding,)
        (store.root / "current" / "encoder_report" / "nano.json").unlink()
        assert [one.found for one in scrub_store(store.root, instance=instance).findings] == ["no pointer"]


def test_a_version_that_failed_its_checks_and_one_never_recorded_are_no_disagreement(store: Store) -> None:
    make(store, "first")
    with dg.DagsterInstance.ephemeral() as instance:
        unknown = scrub_store(store.root, instance=instance)
        assert not unknown.findings and "remembers no materialization" in unknown.notes[0].text
        record(instance, make(store, "second", accept=False))
        failed = scrub_store(store.root, instance=instance)
        assert not failed.findings and "has not passed its checks" in failed.notes[0].text


def test_a_store_without_or_with_a_broken_database_is_scrubbed_from_its_files(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TUBELET_STORE", "TUBELET_DAGSTER", "DAGSTER_HOME"):
        monkeypatch.setenv(name, "")
    export_environment(store.root)
    make(store, "first")
    found = scrub_store(store.root)
    assert not found.findings and "files alone were looked at" in scrub_text(found)
    assert not (store.root / "dagster").exists()
    (store.root / "dagster" / "history" / "runs").mkdir(parents=True)
    for name in ("runs.db", "runs/index.db"):
        (store.root / "dagster" / "history" / name).write_bytes(b"no database" * 100)
    damaged = scrub_store(store.root)
    assert [(one.kind, one.file) for one in damaged.findings] == [(Kind.UNREADABLE, "dagster")] and damaged.artefacts == 1


def run_job(store: Store, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    job = defs.resolve_job_def("scrub_store")
    resources = {"storage": StoreResource(root=str(store.root))}
    return job.execute_in_process(instance=instance, resources=resources, raise_on_error=False)


def test_the_job_shows_findings_as_a_table_and_fails_with_what_does_not_agree(store: Store) -> None:
    made = make(store, "first")
    with dg.DagsterInstance.ephemeral() as instance:
        assert run_job(store, instance).success
        (made.path / "page.html").write_text("other")
        result = run_job(store, instance)
        assert not result.success
        (event,) = [event for event in result.all_events if event.is_step_failure]
        failure = event.step_failure_data.user_failure_data
        assert failure is not None and failure.description is not None
        assert "1 disagreements in 1 artefacts: member_sha256 at artefacts/encoder_report/nano/" in failure.description
        assert str(failure.metadata["findings"].value).count("\n") == 2 and failure.metadata["disagreements"].value == 1


def test_the_command_says_what_it_found_by_its_exit_code(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TUBELET_STORE", "TUBELET_DAGSTER", "DAGSTER_HOME"):
        monkeypatch.setenv(name, "")
    made = make(store, "first")
    command = ["scrub", "--store", str(store.root), "--json", str(tmp_path / "found.json")]
    sound = CliRunner().invoke(tubelet.build_app(), command)
    assert sound.exit_code == 0 and "everything agrees" in sound.output
    assert json.loads((tmp_path / "found.json").read_text())["agrees"]
    (made.path / "page.html").write_text("other")
    assert CliRunner().invoke(tubelet.build_app(), [*command, "--quick"]).exit_code == 0
    damaged = CliRunner().invoke(tubelet.build_app(), command)
    assert damaged.exit_code == 1 and "member_sha256" in damaged.output
    (finding,) = json.loads((tmp_path / "found.json").read_text())["findings"]
    assert finding["kind"] == "member_sha256" and finding["remedy"]
