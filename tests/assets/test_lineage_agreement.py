"""What Dagster remembers is compared with the files, artefact by artefact, and is never needed."""

from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from assets.lineage import agreement, dagster_says
from assets.resources import REPOSITORY
from pipelines.lineage.render import dagster_lines
from pipelines.store import Artefact, Store


def artefacts(tmp_path: Path) -> list[Artefact]:
    store = Store.open(tmp_path / "store")
    return [store.produce("videos", lambda folder: {}, partition=key, config={"key": key}) for key in ("a", "b")] + [store.produce("distinct_clips", lambda folder: {})]


def test_artefacts_that_dagster_remembers_otherwise_or_not_at_all_are_named_and_older_ones_are_not(tmp_path: Path) -> None:
    first, second, merged = artefacts(tmp_path)
    with dg.DagsterInstance.ephemeral() as instance:
        for item, partition, version in ((first, "a", first.digest), (first, "a", "a newer one"), (merged, None, "of another run")):
            instance.report_runless_asset_event(dg.AssetMaterialization(item.asset, partition=partition, tags={DATA_VERSION_TAG: version}))
        assert agreement(instance, [first, second, merged]) == {
            "agree": 1, "of": 3,
            "differ": [
                {"artefact": "videos[b]", "digest": second.digest, "newest": None},
                {"artefact": "distinct_clips", "digest": merged.digest, "newest": "of another run"},
            ],
        }  # fmt: skip


def test_a_database_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    made = artefacts(tmp_path)
    assert dagster_says(tmp_path / "store", made) == {"agree": 0, "of": 0, "differ": []}
    assert not (tmp_path / "store" / "dagster").exists()


def test_a_database_that_cannot_be_read_is_told_and_keeps_no_answer_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = artefacts(tmp_path)
    history = tmp_path / "store" / "dagster" / "history"
    (history / "runs").mkdir(parents=True)
    for path in (history / "runs.db", history / "runs" / "index.db"):
        path.write_bytes(b"no database" * 100)
    for name, value in (("TUBELET_STORE", tmp_path / "store"), ("TUBELET_DAGSTER", tmp_path / "store" / "dagster"), ("DAGSTER_HOME", REPOSITORY)):
        monkeypatch.setenv(name, str(value))
    told = dagster_says(tmp_path / "store", made)
    assert (told["agree"], told["of"], told["differ"]) == (0, 0, []) and told["why"]
    assert "cannot be read" in dagster_lines(told)[0]
