"""DINOv2 and DINOv3 ViT from a local folder, through transformers (extra `hf`): one vector a frame, averaged over a clip.

How pictures are prepared is read from the folder's preprocessor_config.json and done without torchvision: Pillow resizes
with its antialiased filters, then the values are scaled. That is what transformers' Pillow processors do, to the bit.
Published DINOv3 folders name a torchvision processor, which resizes in float: ours rounds to whole grey levels there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.curation.clip_frames import image_sampling
from pipelines.curation.embedders.batches import arithmetic, autocast, device_of, exact_torch, mean_over_frames
from pipelines.curation.embedders.folders import deciding_config, files_digest, licence_of, read_json, safetensors_of
from pipelines.curation.embedders.pixels import Filter, Geometry
from pipelines.curation.embedding import EmbeddingSettings
from pipelines.errors import InputError
from pipelines.identity import digest_of

_FILTERS: dict[int, Filter] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, as the files have them
_ATTENTION = "sdpa"


class DinoImages:
    """An image encoder of transformers; the class token after the last norm stands for a frame, or the patches' mean."""

    libraries = ("torch", "transformers", "pillow")

    def __init__(self, folder: Path, model_type: str, settings: EmbeddingSettings) -> None:
        self.name = folder.resolve().name
        self._folder, self._model_type, self._settings = folder, model_type, settings
        self.sampling = image_sampling(settings.frames)
        self._config = deciding_config(folder)
        self._prepared = read_preparation(folder, settings.image_size)
        self._check_patches()

    @property
    def geometry(self) -> Geometry:
        return self._prepared[0]

    @property
    def dimensions(self) -> int:
        return self._number("hidden_size")

    @cached_property
    def licence(self) -> str:
        return licence_of(self._folder, self._model_type, self._settings.licence)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """See `Embedder.identity`."""
        return {
            "kind": self._model_type, "weights": files_digest(safetensors_of(self._folder)), "config": self._config,
            "sampling": self.sampling.to_dict(), "geometry": self.geometry.to_dict(), "scaling": self._prepared[1],
            "pooling": "patches" if self._patches else "cls",
            "attention": _ATTENTION, **arithmetic(self._settings, self._settings.batch),
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

        scaling = self._prepared[1]
        mean, std = (torch.tensor(scaling[name], device=self._device) for name in ("mean", "std"))
        values = torch.from_numpy(pictures).to(self._device).to(torch.float32) * scaling["rescale"]  # (B, H, W, 3)
        with autocast(self._settings):
            tokens = self._network(pixel_values=((values - mean) / std).permute(0, 3, 1, 2)).last_hidden_state  # (B, 1 + R + P, D)
        special = 1 + int(self._config.get("num_register_tokens", 0))  # the class token and R registers come first
        features = tokens[:, special:].float().mean(dim=1) if self._patches else tokens[:, 0].float()
        return features.cpu().numpy()  # type: ignore[no-any-return]

    @property
    def _patches(self) -> bool:
        return self._settings.pooling == "patches"

    @cached_property
    def _device(self) -> Any:
        return device_of(self._settings)

    @cached_property
    def _network(self) -> Any:
        import torch

        try:
            from transformers import AutoModel
        except ImportError as error:
            raise InputError(
                f"{self._model_type} needs the package transformers", expected="the extra hf", found="no such module",
                remedy="run pip install -c constraints.txt -e '.[hf]'",
            ) from error  # fmt: skip
        with quiet_transformers():
            network, loaded = AutoModel.from_pretrained(
                self._folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=torch.float32,
                attn_implementation=_ATTENTION, output_loading_info=True,
            )  # fmt: skip
        if missing := sorted(loaded["missing_keys"]):
            raise InputError(
                f"{self._folder} lacks weights of its own configuration", expected="every tensor of the model", found=f"no {', '.join(missing[:5])}",
                remedy="copy or download the folder again",
            )  # fmt: skip
        return network.eval().to(self._device)

    def _number(self, name: str) -> int:
        value = self._config.get(name)
        if not isinstance(value, int):
            raise InputError(
                f"{self._folder / 'config.json'} does not describe the model", expected=f"a number {name}", found=str(value),
                remedy="take the file that was published with the weights",
            )  # fmt: skip
        return value

    def _check_patches(self) -> None:
        patch, size = self._number("patch_size"), (self.geometry.height, self.geometry.width)
        if size[0] % patch or size[1] % patch:
            nearest = max(1, round(size[0] / patch)) * patch
            raise InputError(
                "the picture does not divide into patches", expected=f"multiples of {patch} px", found=f"{size[0]} x {size[1]}",
                remedy=f"set image_size {nearest}",
            )  # fmt: skip


def read_preparation(folder: Path, image_size: int | None) -> tuple[Geometry, dict[str, Any]]:
    """(geometry, {mean, std, rescale}) of a folder's preprocessor_config.json; `image_size` (px) replaces the published size
    and keeps the ratio of resize to crop. Raises `InputError` on a file that asks for what is not done here."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise InputError(
            f"{folder} does not say how pictures are prepared", expected="preprocessor_config.json", found="no such file",
            remedy="take it from where the weights were published: other pixels give other vectors",
        )  # fmt: skip
    said = read_json(path)
    size, crop = _sides(said.get("size")), _sides(said.get("crop_size")) if said.get("do_center_crop") else {}
    resample = _FILTERS.get(said.get("resample", -1))
    edge: int | None = None
    if size.keys() == {"shortest_edge"} and crop.keys() == {"height", "width"} and max(crop.values()) <= size["shortest_edge"]:
        edge, (height, width) = size["shortest_edge"], (crop["height"], crop["width"])
    elif size.keys() == {"height", "width"} and crop in ({}, size):
        height, width = size["height"], size["width"]
    else:
        height = width = 0
    if not height or resample is None or not said.get("do_resize", True):
        raise InputError(
            f"{path} prepares pictures in a way that is not done here",
            expected="a bilinear (2) or bicubic (3) resize to one size, or to shortest_edge and a centre crop inside",
            found=f"size {said.get('size')}, crop {crop or 'none'}, resample {said.get('resample')}, do_resize {said.get('do_resize')}",
            remedy="write such a file beside the weights",
        )  # fmt: skip
    larger = 1.0 if image_size is None else image_size / min(height, width)
    short = None if edge is None else round(edge * larger)
    scaling = {
        "rescale": float(said.get("rescale_factor", 1 / 255)) if said.get("do_rescale", True) else 1.0,
        "mean": _channels(said, "image_mean", path) if said.get("do_normalize", True) else [0.0] * 3,
        "std": _channels(said, "image_std", path) if said.get("do_normalize", True) else [1.0] * 3,
    }
    return Geometry(round(height * larger), round(width * larger), short, resample), scaling


def _sides(said: Any) -> dict[str, int]:
    """Sides in px by name, such as height and width or shortest_edge; a single number (older files) tells none."""
    return {name: int(side) for name, side in said.items() if side is not None} if isinstance(said, dict) else {}


def _channels(said: dict[str, Any], name: str, path: Path) -> list[float]:
    values = said.get(name)
    if not isinstance(values, list) or len(values) != 3:
        raise InputError(f"{path} does not scale values", expected=f"{name} for 3 channels", found=str(values), remedy="take the file that was published with the weights")
    return [float(value) for value in values]


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars of transformers inside."""
    from transformers.utils import logging

    was = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was:
            logging.enable_progress_bar()
