"""Our own weight folders: NAME.safetensors with NAME.json (class and config) beside it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.action_predictor import ActionConditionedPredictor, ActionPredictorConfig
from models.assembly import build_module
from models.checkpoints import read_safetensors, write_safetensors
from models.encoder import EncoderConfig, VideoEncoder
from models.errors import ConfigError, WeightsError
from models.predictor import MaskedPredictor, PredictorConfig
from models.probes import (
    AnticipationProbe,
    AnticipationProbeConfig,
    AttentiveProbe,
    AttentiveProbeConfig,
    LinearProbe,
    LinearProbeConfig,
)

MODULES: dict[str, tuple[type[nn.Module], type[Any]]] = {
    "VideoEncoder": (VideoEncoder, EncoderConfig),
    "MaskedPredictor": (MaskedPredictor, PredictorConfig),
    "ActionConditionedPredictor": (ActionConditionedPredictor, ActionPredictorConfig),
    "AttentiveProbe": (AttentiveProbe, AttentiveProbeConfig),
    "AnticipationProbe": (AnticipationProbe, AnticipationProbeConfig),
    "LinearProbe": (LinearProbe, LinearProbeConfig),
}
"""Every model of this project with its config, by the class name written into the description."""

_FORMAT = 1


def save_module(module: nn.Module, folder: Path | str, name: str) -> Path:
    """Write folder/name.safetensors and folder/name.json (class and config); returns the path of the weights."""
    class_name = type(module).__name__
    if MODULES.get(class_name, (None,))[0] is not type(module):
        raise WeightsError(
            f"{class_name} is not a model of this project",
            expected=", ".join(MODULES),
            found=class_name,
            remedy="Unwrap the module (engine, compile, data parallel) before saving.",
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    config: Any = module.config
    description = {"format": _FORMAT, "class": class_name, "config": config.to_dict()}
    path.with_suffix(".json").write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")
    write_safetensors({key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}, path)
    return path


@torch.inference_mode(False)  # else weights loaded under it could never be trained
def load_module(folder: Path | str, name: str) -> Any:
    """The module that save_module wrote, on the CPU, in the dtype it was saved in. Raises WeightsError."""
    path = Path(folder) / f"{name}.safetensors"
    module_class, config = read_description(path.with_suffix(".json"))
    return build_module(module_class, config, read_safetensors(path), str(path))


def read_description(path: Path) -> tuple[type[nn.Module], Any]:
    """(class, config) of a module that save_module wrote, from its NAME.json. Raises WeightsError."""
    try:
        description = json.loads(path.read_text())
        module_class, config_class = MODULES[description["class"]]
        config = config_class.from_dict(description["config"])
        written_format = description["format"]
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist", remedy="Name a folder that save_module wrote.") from error
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        raise WeightsError(
            f"{path} does not describe a model",
            expected="JSON with format, class (" + ", ".join(MODULES) + ") and config",
            found=str(error) if isinstance(error, ConfigError) else repr(error),
            remedy="Write the folder again with save_module.",
        ) from error
    if written_format != _FORMAT:
        raise WeightsError(
            f"{path} is of another format",
            expected=str(_FORMAT),
            found=str(written_format),
            remedy="Load it with the version that wrote it, or convert it.",
        )
    return module_class, config


def state_digest(module: nn.Module) -> str:
    """sha256 (hex) over names, dtypes, shapes and bytes of all weights, in name order; equal weights, equal digest."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(f"{key}|{value.dtype}|{tuple(value.shape)}|".encode())
        raw = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(raw.numpy())  # type: ignore[arg-type]
    return digest.hexdigest()
