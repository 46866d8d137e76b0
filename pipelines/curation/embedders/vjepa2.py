"""V-JEPA 2 and 2.1 through our own networks: one window of a clip, all its tokens averaged.

Any weights that `models.weights` reads will do: official checkpoints, Hugging Face folders, our own folders and artefacts.
Pictures are prepared as for `tubelet features` (short side to 256/224 of the size, centre crop), but by Pillow where they
are decoded: the filter is the same, and values are rounded to whole grey levels.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.curation.clip_frames import Sampling
from pipelines.curation.embedders.batches import arithmetic, device_of, exact_torch, in_batches
from pipelines.curation.embedders.folders import CLIP_MODEL, files_digest, licence_of
from pipelines.curation.embedders.pixels import Geometry
from pipelines.curation.embedding import EmbeddingSettings
from pipelines.errors import InputError
from pipelines.identity import digest_of

if TYPE_CHECKING:
    from models.encoder import VideoEncoder
    from pipelines.features.settings import FeatureSettings


class VJepa2Clips:
    """A clip encoder: sees `window_frames` frames (the number it was trained with) at `fps` from the middle of a clip."""

    libraries = ("torch", "pillow")

    def __init__(self, path: Path, name: str, settings: EmbeddingSettings) -> None:
        if settings.frames not in (None, "clip"):
            raise InputError(
                f"{name} is a clip encoder", expected="frames clip (its window: window_frames at fps)", found=f"frames {settings.frames}",
                remedy="leave frames out, or set window_frames",
            )  # fmt: skip
        if settings.pooling == "cls":
            raise InputError(f"{name} has no class token", expected="pooling own or patches", found="cls", remedy="leave pooling as it is")
        self.name = name
        self._path, self._settings = path, settings

    @cached_property
    def sampling(self) -> Sampling:
        return Sampling(self._features.frames, fps=self._features.fps)

    @cached_property
    def geometry(self) -> Geometry:
        preprocess = self._features.preprocess
        short = preprocess.height * 256 // 224 if preprocess.height == preprocess.width else None  # as Preprocess does
        return Geometry(preprocess.height, preprocess.width, short, "bilinear", "even")

    @property
    def dimensions(self) -> int:
        return self._encoder.config.embed_dim

    @cached_property
    def licence(self) -> str:
        return licence_of(self._path, CLIP_MODEL, self._settings.licence)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """See `Embedder.identity`."""
        return {
            "kind": CLIP_MODEL, "weights": files_digest(self._files()), "part": self._settings.part, "config": self._encoder.config.to_dict(),
            "sampling": self.sampling.to_dict(), "geometry": self.geometry.to_dict(), "features": self._features.to_dict(),
            "pooling": "patches", **arithmetic(self._settings, self._batch),
        }  # fmt: skip

    @cached_property
    def digest(self) -> str:
        return digest_of(self.identity)

    def embed(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Embedder.embed`."""
        with exact_torch(self._settings):
            return in_batches(frames, self._batch, self._run, self.dimensions)

    def _run(self, clips: NDArray[np.uint8]) -> NDArray[np.float32]:
        import torch

        from pipelines.features.encoding import encode
        from pipelines.features.windows import Window

        prepared = (self._features.preprocess(torch.from_numpy(clip)) for clip in clips)  # the size is right: values only
        windows = [Window(number, 0.0, 0.0, 0, video) for number, video in enumerate(prepared)]
        return encode(self._encoder, windows, self._features)

    @cached_property
    def _features(self) -> FeatureSettings:
        """What `encode` is told; squash, since the pictures that come have the encoder's size already."""
        from pipelines.features.settings import settings_for

        chosen = self._settings
        try:
            return settings_for(
                self._encoder.config, frames=chosen.window_frames, fps=chosen.fps, size=chosen.image_size, mode="squash", pool="clip",
                precision=chosen.precision,
            )  # fmt: skip
        except InputError as error:  # it speaks to those who type options
            remedy = error.remedy.replace("--frames", "window_frames").replace("--size", "image_size").replace("--fps", "fps")
            raise InputError(error.problem, expected=error.expected, found=error.found, remedy=remedy) from error

    @cached_property
    def _encoder(self) -> VideoEncoder:
        from models.weights import load_encoder

        heads = {} if self._settings.heads is None else {"num_heads": self._settings.heads}
        return load_encoder(self._path, part=self._settings.part, **heads).to(device_of(self._settings)).eval()

    @property
    def _batch(self) -> int:
        """Clips run together: as many frames as the settings say."""
        return max(1, self._settings.batch // self.sampling.frames)

    def _files(self) -> list[Path]:
        """Every file that decides the weights."""
        from models.checkpoints import is_ours
        from pipelines.weights.replace import weight_files

        if self._path.is_dir():
            named = [self._path / f"{self._settings.part}{suffix}" for suffix in (".safetensors", ".json")]
            chosen = self._settings.part and all(file.is_file() for file in named)
            return named if chosen else [self._path / name for name in sorted(weight_files(self._path))]
        return [self._path, *([self._path.with_suffix(".json")] if is_ours(self._path) else [])]
