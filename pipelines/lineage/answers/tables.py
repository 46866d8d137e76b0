"""The ledger as Parquet: the checkpoints that were asked about, what they saw, and the selections and shards they drew from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pipelines import schemas
from pipelines.lineage.ledger import checkpoint_row
from pipelines.lineage.trainings import Training
from pipelines.lineage.tree import ancestors
from pipelines.shards.index import INDEX_FILE
from pipelines.store import Artefact, Store, make_folder

SELECTION_FILE = "selection.parquet"


def write_tables(store: Store, trainings: Sequence[Training], folder: Path) -> list[Path]:
    """checkpoints.parquet, and in it one row for each training; then exposures-PHASE-DIGEST.parquet of each of them, and
    selections-DIGEST.parquet and shards-DIGEST.parquet of what these drew from. Digests are the artefacts'; returns the paths."""
    make_folder(folder)
    checkpoints = [checkpoint_row(store, one.checkpoint) for one in trainings]
    written = [folder / "checkpoints.parquet"]
    schemas.write_table(schemas.table_of(schemas.CHECKPOINTS, checkpoints), written[0], schemas.CHECKPOINTS)
    for one in trainings:
        written.append(folder / f"exposures-{re.sub(r'[^A-Za-z0-9._-]+', '-', one.spec.phase)}-{one.checkpoint.digest}.parquet")
        schemas.write_table(one.table(), written[-1], schemas.EXPOSURES)
    sources: dict[Path, Artefact] = {item.path: item for one in trainings for item in ancestors(store, one.checkpoint)}
    for name, file, schema in (("selections", SELECTION_FILE, schemas.SELECTION), ("shards", INDEX_FILE, schemas.SHARD_INDEX)):
        for item in sources.values():
            if (item.path / file).is_file():
                written.append(folder / f"{name}-{item.digest}.parquet")
                schemas.write_table(schemas.read_table(item.path / file, schema), written[-1], schema)
    return written
