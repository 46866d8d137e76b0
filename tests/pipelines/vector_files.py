"""Vectors that tests make up, in the files that the stage of embeddings writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def write_vectors(folder: Path, clip_ids: list[str], vectors: np.ndarray) -> None:
    """embeddings.npy and clip_ids.json: row i of the one (N, D) is named by entry i of the other."""
    np.save(folder / "embeddings.npy", vectors)
    (folder / "clip_ids.json").write_text(json.dumps(clip_ids))
