"""Where things are: the store as a resource, and the environment every process of the project shares."""

from __future__ import annotations

import os
from pathlib import Path

import dagster as dg

from pipelines.store import Store, local_folder

REPOSITORY = Path(__file__).resolve().parent.parent


def store_root() -> Path:
    """`TUBELET_STORE`, or `store/` in the repository."""
    return Path(os.environ.get("TUBELET_STORE") or REPOSITORY / "store")


def export_environment(root: Path) -> None:
    """Set what `dagster.yaml` and every child process read; `root` may be relative to the current folder."""
    path = local_folder(root)
    os.environ["TUBELET_STORE"] = str(path)
    os.environ["TUBELET_DAGSTER"] = str(path / "dagster")
    os.environ["DAGSTER_HOME"] = str(REPOSITORY)


class StoreResource(dg.ConfigurableResource):
    """The artefact store. An empty root means `TUBELET_STORE`, or `store/` in the repository."""

    root: str = ""

    def open(self) -> Store:
        return Store.open(self.root or store_root())
