"""The whole of `tubelet features`: a checkpoint and videos in, feature files out, and what to say about it."""

from __future__ import annotations

import json
import logging
import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

import torch

from models.encoder import VideoEncoder
from models.weights import load_encoder, state_digest
from pipelines.errors import InputError
from pipelines.features.encoding import default_batch
from pipelines.features.files import FileFormat, is_one_file
from pipelines.features.output import FORMAT, FolderOutput, open_output
from pipelines.features.settings import FeatureSettings, check_options, settings_for
from pipelines.features.sources import Request, find_videos
from pipelines.features.work import Outcome, Work
from pipelines.identity import canonical_json
from pipelines.store import disk_error
from pipelines.weights.locate import locate
from pipelines.weights.options import speaking_of_options

logger = logging.getLogger("tubelet.features")
_NO_FOLDERS = (".csv", ".json", ".jsonl", ".txt", ".npz", ".pt", ".pth", ".pkl", ".safetensors", ".h5", ".hdf5", ".mp4")  # names that mean a file


@dataclass(frozen=True, kw_only=True)
class FeatureRequest:
    """What a person asks for; `options` go to `settings_for`. `batch` and `workers` change speed and memory only."""

    checkpoint: str
    source: Path
    store: Path
    out: Path | None = None
    part: str | None = None
    file_format: str | None = None
    device: str | None = None
    batch: int | None = None
    workers: int = 2
    heads: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


def extract_features(request: FeatureRequest) -> Outcome:
    """Encode every video that was asked for and write what came out; bad videos are told, and the others go on.

    Raises InputError or WeightsError before anything is written when the request cannot be met.
    """
    videos = find_videos(request.source)
    out, file_format = _destination(request)
    device = _device(request.device)
    check_options(**{name: value for name, value in request.options.items() if name not in ("frames", "layers", "antialias")})
    if request.options.get("pool") == "dense" and file_format == "parquet":
        raise InputError("Dense features go to npy only", expected="--format npy, or --pool clip or frame", found="--format parquet", remedy="Use --format npy.")
    if request.options.get("precision") == "bf16" and device.type != "cuda":
        raise InputError("bf16 is for GPUs", expected="a CUDA device (a CPU is slower in bf16 than in fp32)", found=device.type, remedy="Leave out --precision.")
    path = locate(request.checkpoint, request.store)
    with speaking_of_options():
        encoder = load_encoder(path, part=request.part, **({} if request.heads is None else {"num_heads": request.heads}))
    settings = settings_for(encoder.config, **request.options)
    description = describe(request, path, encoder, settings, file_format)
    encoder.to(device).eval()
    try:
        return _write(request, out, description, encoder, settings, file_format, videos)
    except OSError as error:
        full = disk_error(error, out.absolute())
        if full is not None and "full" in full.problem:
            raise full from error
        raise InputError(f"{out} cannot be written", expected="a place where files can be made", found=str(error), remedy="Choose another --out.") from error


def _write(
    request: FeatureRequest, out: Path, description: dict[str, Any], encoder: VideoEncoder, settings: FeatureSettings,
    file_format: FileFormat, videos: Request,
) -> Outcome:  # fmt: skip
    output = open_output(out, description, settings, file_format)
    outcome = Outcome(out, file_format, settings, videos.others, output.rejected)
    try:
        waiting = [video for video in videos.videos if not output.is_done(video)]
        outcome.skipped = len(videos.videos) - len(waiting)
        if request.source.is_dir() and isinstance(output, FolderOutput):
            outcome.gone = output.done_but_not_among(videos.videos)
        if waiting:
            _say_what_begins(request, encoder, settings, len(waiting))
            batch = request.batch or default_batch(encoder, settings)
            Work(encoder, settings, output, outcome).through(waiting, batch, request.workers)
    except KeyboardInterrupt:
        outcome.stopped = True
    finally:
        output.close()
    return outcome


def describe(request: FeatureRequest, path: Path, encoder: VideoEncoder, settings: FeatureSettings, file_format: FileFormat) -> dict[str, Any]:
    """What features.json says: enough to make the same features again, or to know that others are not the same."""
    weights = state_digest(encoder)
    root = request.source if request.source.is_dir() else request.source.parent
    packages = {"python": platform.python_version()}
    for name in ("tubelet", "torch", "av", "numpy"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "source folder"
    return {
        "format": FORMAT, "settings_digest": settings.digest(weights, encoder.config), "file_format": file_format,
        "checkpoint": {"name": request.checkpoint, "path": str(path.absolute()), "part": request.part, "digest": weights, "config": json.loads(canonical_json(encoder.config.to_dict()))},
        "settings": settings.to_dict(), "source": str(root.resolve()), "versions": packages,
    }  # fmt: skip


def _destination(request: FeatureRequest) -> tuple[Path, FileFormat]:
    """Where to write and in which format; a file name decides the format, and holds one video."""
    out = request.out or Path(f"{request.source.resolve().stem if request.source.is_file() else request.source.resolve().name}-features")
    if request.file_format not in (None, *get_args(FileFormat)):
        raise InputError(f"There is no format {request.file_format}", expected=" or ".join(get_args(FileFormat)), found=str(request.file_format), remedy="Choose one with --format.")
    if out.suffix in _NO_FOLDERS:
        raise InputError(f"There are no features in {out.suffix} files", expected="a folder, or one .npy or .parquet file", found=str(out), remedy="Name such a file with --out, or a folder.")
    if not is_one_file(out):
        return out, "parquet" if request.file_format == "parquet" else "npy"
    file_format: FileFormat = "npy" if out.suffix == ".npy" else "parquet"
    if request.file_format not in (None, file_format):
        raise InputError("--format and the name of --out disagree", expected=file_format, found=str(request.file_format), remedy="Leave out --format.")
    if request.source.is_dir():
        raise InputError("Many videos do not go into one file", expected="--out as a folder", found=str(out), remedy="Name a folder; `pyarrow.parquet.read_table(folder / \"features\")` reads all its tables at once.")
    return out, file_format


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"There is no device {name}", expected="cpu, cuda or cuda:1", found=name, remedy="Leave out --device.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("There is no GPU for --device cuda", expected="a CUDA device", found="none", remedy="Leave out --device to run on the CPU.")
    return device


def _say_what_begins(request: FeatureRequest, encoder: VideoEncoder, settings: FeatureSettings, count: int) -> None:
    seconds = float(settings.frames * settings.step)
    overlap = "" if settings.stride_seconds == seconds else f", one every {settings.stride_seconds:g} s"
    logger.info(
        "%d %s, windows of %d frames at %g frames/s (%g s%s), %dx%d px %s, pool %s, encoder %d x %d on %s", count, "video" if count == 1 else "videos",
        settings.frames, settings.fps, seconds, overlap, settings.preprocess.height, settings.preprocess.width, settings.preprocess.mode,
        settings.pool, encoder.config.depth, encoder.config.embed_dim, _device(request.device),
    )  # fmt: skip
