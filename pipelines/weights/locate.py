"""From what a person typed to a weight file or folder: a path, or an artefact of the store by its name."""

from __future__ import annotations

import re
from pathlib import Path

from models.errors import WeightsError
from pipelines.errors import MissingArtefact
from pipelines.lineage.tree import find
from pipelines.store import Store

_ADDRESS = re.compile(r"[a-z0-9+]+://.*")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_ARTEFACT = re.compile(r"[a-z][a-z0-9_]*(\[[A-Za-z0-9._-]+\])?|[0-9a-f]{8,}")


def locate(name: str, store: Path) -> Path:
    """`name` as a path when something is there; else the folder of the artefact that `asset[partition]` or a digest names.

    Raises WeightsError when it is neither, MissingArtefact or InputError when the store has no such artefact.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    hub_name = _HUB_NAME.fullmatch(name) and not path.parent.exists() and not name.endswith((".pt", ".pth", ".tar", ".safetensors"))
    if hub_name or _ADDRESS.fullmatch(name):
        raise WeightsError(
            f"{name} is not on this machine, and nothing is downloaded", expected="a checkpoint file or a folder with weights that is here",
            found="a name of the Hugging Face hub" if hub_name else "an address",
            remedy=f"Fetch it first ({f'huggingface-cli download {name} --local-dir FOLDER' if hub_name else 'with a browser or curl'}), then name the file or folder.",
        )  # fmt: skip
    if not _ARTEFACT.fullmatch(name):
        raise WeightsError(
            f"{name} does not exist", expected="a checkpoint file, a folder with weights, or an artefact such as cooled_encoder[nano]",
            found="nothing there", remedy="Check the path.",
        )  # fmt: skip
    try:
        return find(Store.open(store, create=False), name).path
    except MissingArtefact as error:
        raise MissingArtefact(
            f"{name} is neither a file here nor an artefact of {store}", expected="a path, or an artefact by name", found=error.found,
            remedy=f"Check the path; or for the artefact: {error.remedy}",
        ) from error  # fmt: skip
