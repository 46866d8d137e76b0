"""Tables carry their version: older ones are brought up to date while read, everything else is refused."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import schemas
from pipelines.errors import StoreError
from pipelines.schemas import CLIPS, EPISODES, MIGRATIONS, SELECTION, read_table, table_of, write_table

TABLES = [value for value in vars(schemas).values() if isinstance(value, pa.Schema)]


def older(schema: pa.Schema, version: int, path: Path) -> Path:
    """A file of an older version: without the columns that its migrations add."""
    name = schemas.table_name(schema)
    row = pa.Table.from_pylist([{}], schema=schema)
    for step in range(version, schemas.table_version(schema)):
        added = set(MIGRATIONS[(name, step)](pa.table({"x": [0]})).schema.names) & set(row.schema.names)
        row = row.drop_columns(sorted(added))
    metadata = {"tubelet.table": name, "tubelet.version": str(version)}
    pq.write_table(row.replace_schema_metadata(metadata), path)
    return path


@pytest.mark.parametrize("schema", [schema for schema in TABLES if schemas.table_version(schema) > 1], ids=schemas.table_name)
def test_table_of_version_1_is_migrated_while_it_is_read(schema: pa.Schema, tmp_path: Path) -> None:
    found = read_table(older(schema, 1, tmp_path / "old.parquet"), schema)
    assert found.schema.equals(schema) and len(found) == 1
    column = schema.names[-1]
    assert read_table(tmp_path / "old.parquet", schema, columns=[column]).column_names == [column]


def test_every_step_up_to_each_tables_version_has_its_migration() -> None:
    wanted = {(schemas.table_name(schema), step) for schema in TABLES for step in range(1, schemas.table_version(schema))}
    assert wanted == set(MIGRATIONS)


def test_written_table_is_read_back_equal_with_all_or_some_columns(tmp_path: Path) -> None:
    table = table_of(SELECTION, [{"clip_id": "a", "weight": 0.5, "credit_targets": ["x"], "credit_shares": [1.0]}])
    write_table(table, tmp_path / "t.parquet", SELECTION)
    assert read_table(tmp_path / "t.parquet", SELECTION).equals(table)
    assert read_table(tmp_path / "t.parquet", SELECTION, ["weight", "clip_id"]).to_pylist() == [{"weight": 0.5, "clip_id": "a"}]


def test_other_tables_newer_versions_and_foreign_files_are_refused_with_a_remedy(tmp_path: Path) -> None:
    write_table(table_of(EPISODES, []), tmp_path / "other.parquet", EPISODES)
    newer = {"tubelet.table": "clips", "tubelet.version": "99"}
    pq.write_table(table_of(CLIPS, []).replace_schema_metadata(newer), tmp_path / "newer.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "foreign.parquet")
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({"tubelet.table": "clips", "tubelet.version": "1"}), tmp_path / "false.parquet")
    for name in ("other", "newer", "foreign", "false"):
        with pytest.raises(StoreError, match="not the table that was asked for") as caught:
            read_table(tmp_path / f"{name}.parquet", CLIPS)
        assert caught.value.remedy


def test_a_damaged_file_is_named_and_one_that_is_not_there_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_table(table_of(SELECTION, [{"clip_id": "a", "weight": 0.5}]), path, SELECTION)
    whole = path.read_bytes()
    for data in (b"", b"PAR1xx", whole[:-1], b"PAR1" + bytes(40) + whole[44:]):
        path.write_bytes(data)
        with pytest.raises(StoreError, match=r"t\.parquet is damaged .*table selection"):
            read_table(path, SELECTION)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_table(path, SELECTION)
