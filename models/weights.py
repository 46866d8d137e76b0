"""Weight files: our own folders, the official key layout, and checkpoints that others wrote. Strict everywhere.

No pickle is ever executed: ``.pt`` files go through ``torch.load(weights_only=True)``, everything else is safetensors.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.action_predictor import ActionConditionedPredictor, ActionPredictorConfig
from models.encoder import EncoderConfig, VideoEncoder
from models.errors import WeightsError
from models.predictor import MaskedPredictor, PredictorConfig
from models.probes import AttentiveProbe, AttentiveProbeConfig, LinearProbe, LinearProbeConfig

_FORMAT = 1
_CLASSES: dict[str, tuple[type[nn.Module], type[Any]]] = {
    "VideoEncoder": (VideoEncoder, EncoderConfig),
    "MaskedPredictor": (MaskedPredictor, PredictorConfig),
    "ActionConditionedPredictor": (ActionConditionedPredictor, ActionPredictorConfig),
    "AttentiveProbe": (AttentiveProbe, AttentiveProbeConfig),
    "LinearProbe": (LinearProbe, LinearProbeConfig),
}
_OFFICIAL_KINDS = {
    "encoder": "VideoEncoder",
    "predictor": "MaskedPredictor",
    "action_predictor": "ActionConditionedPredictor",
    "probe": "AttentiveProbe",
}
_WRAPPER_PREFIX = re.compile(r"^(?:module\.|backbone\.)+")
# Sin-cos tables that the official trainer stores but never uses together with rotary positions.
_IGNORED_KEYS = frozenset({"pos_embed", "predictor_pos_embed"})


def save_module(module: nn.Module, folder: Path | str, name: str) -> Path:
    """Write folder/name.safetensors and folder/name.json (class and config); returns the path of the weights."""
    class_name = type(module).__name__
    if _CLASSES.get(class_name, (None,))[0] is not type(module):
        raise WeightsError(
            f"{class_name} is not a model of this project",
            expected=", ".join(_CLASSES),
            found=class_name,
            remedy="Unwrap the module (engine, compile, data parallel) before saving.",
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    save_file({key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}, path)
    config = module.config
    description = {"format": _FORMAT, "class": class_name, "config": config.to_dict()}  # type: ignore[operator, union-attr]
    path.with_suffix(".json").write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")
    return path


def load_module(folder: Path | str, name: str) -> Any:
    """The module that save_module wrote, on the CPU, in the dtype it was saved in. Raises WeightsError."""
    description_path = Path(folder) / f"{name}.json"
    try:
        description = json.loads(description_path.read_text())
        module_class, config_class = _CLASSES[description["class"]]
        config = config_class.from_dict(description["config"])
        written_format = description["format"]
    except FileNotFoundError as error:
        raise WeightsError(
            f"{description_path} does not exist", remedy="Name a folder that save_module wrote."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{description_path} does not describe a model",
            expected="JSON with format, class (" + ", ".join(_CLASSES) + ") and config",
            found=repr(error),
            remedy="Write the folder again with save_module.",
        ) from error
    if written_format != _FORMAT:
        raise WeightsError(
            f"{description_path} is of another format",
            expected=str(_FORMAT),
            found=str(written_format),
            remedy="Load it with the version that wrote it, or convert it.",
        )
    path = description_path.with_suffix(".safetensors")
    return _build(module_class, config, _read_safetensors(path), str(path))


def from_official(kind: str, state_dict: Mapping[str, Tensor], config: Any) -> Any:
    """A float32 module from tensors under official keys; kind is encoder, predictor, action_predictor or probe.

    The wrappers' prefixes ``module.`` and ``backbone.`` are stripped. Every other key must be consumed: a difference
    raises WeightsError listing missing, unexpected and wrong-shaped keys. The caller's tensors are not aliased.
    """
    if kind not in _OFFICIAL_KINDS:
        raise WeightsError("Unknown kind of official weights", expected=", ".join(_OFFICIAL_KINDS), found=kind)
    module_class, config_class = _CLASSES[_OFFICIAL_KINDS[kind]]
    if not isinstance(config, config_class):
        raise WeightsError(
            f"The config does not belong to a {kind}",
            expected=config_class.__name__,
            found=type(config).__name__,
            remedy="Build the config of the same part.",
        )
    tensors: dict[str, Tensor] = {}
    for official_key, tensor in state_dict.items():
        key = _WRAPPER_PREFIX.sub("", official_key)
        if key in tensors:
            raise WeightsError(f"Two official keys name {key}", remedy="Pass the state dict of one part only.")
        if key not in _IGNORED_KEYS:
            tensors[key] = tensor.detach().to("cpu", torch.float32, copy=True)
    return _build(module_class, config, tensors, f"official {kind} weights")


def to_official(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the module's tensors under official keys (without wrapper prefixes), on the CPU."""
    if type(module).__name__ not in _OFFICIAL_KINDS.values():
        raise WeightsError(
            f"{type(module).__name__} has no official layout", expected=", ".join(_OFFICIAL_KINDS.values())
        )
    return {key: value.detach().to("cpu", copy=True) for key, value in module.state_dict().items()}


def read_checkpoint(path: Path | str, part: str | None = None) -> dict[str, Tensor]:
    """Tensors by key from a ``.safetensors`` file or a ``.pt``/``.pth``/``.tar`` file.

    A training checkpoint holds several parts (``encoder``, ``target_encoder``, ``predictor`` ...): ``part`` must then
    name one, because encoder and target_encoder are different weights. Raises WeightsError.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        content: Any = _read_safetensors(path)
    else:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise WeightsError(f"{path} does not exist", remedy="Check the path.") from error
        except Exception as error:  # torch raises many types for foreign, truncated and unsafe pickles
            raise WeightsError(
                f"{path} cannot be read as weights",
                expected="a checkpoint of plain tensors (weights_only)",
                found=str(error).splitlines()[0] if str(error) else type(error).__name__,
                remedy="Download it again, or take a file that holds tensors only.",
            ) from error
    parts = sorted(key for key, value in content.items() if _is_state(value)) if isinstance(content, dict) else []
    if part is not None:
        if part not in parts:
            raise WeightsError(
                f"{path} has no part {part}",
                expected=part,
                found=", ".join(parts) or "no parts",
                remedy="Name one of them.",
            )
        return dict(content[part])
    if not _is_state(content):
        raise WeightsError(
            f"{path} is not one set of weights",
            expected="tensors by name",
            found=f"parts {', '.join(parts)}" if parts else type(content).__name__,
            remedy="Choose one with part=." if parts else "Take a file that holds a state dict.",
        )
    return dict(content)


def state_digest(module: nn.Module) -> str:
    """sha256 (hex) over names, dtypes, shapes and bytes of all weights, in name order; equal weights, equal digest."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(f"{key}|{value.dtype}|{tuple(value.shape)}|".encode())
        raw = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(raw.numpy())  # type: ignore[arg-type]
    return digest.hexdigest()


def _is_state(content: Any) -> bool:
    return isinstance(content, dict) and bool(content) and all(isinstance(value, Tensor) for value in content.values())


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist", remedy="Check the path.") from error
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} is damaged or no safetensors file", found=str(error), remedy="Copy or download it again."
        ) from error


def _build(module_class: type[nn.Module], config: Any, tensors: dict[str, Tensor], source: str) -> nn.Module:
    """A module that owns these tensors; nothing is initialised first."""
    with torch.device("meta"):
        module = module_class(config)
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    problems = [
        ("missing", sorted(wanted.keys() - tensors.keys())),
        ("unexpected", sorted(tensors.keys() - wanted.keys())),
        (
            "wrong shape",
            [
                f"{key} {tuple(tensors[key].shape)} instead of {shape}"
                for key, shape in sorted(wanted.items())
                if key in tensors and tuple(tensors[key].shape) != shape
            ],
        ),
        ("not finite", sorted(key for key, value in tensors.items() if not bool(value.isfinite().all()))),
    ]
    found = "; ".join(f"{label}: {', '.join(keys)}" for label, keys in problems if keys)
    if found:
        raise WeightsError(
            f"{source} does not fit {module_class.__name__}",
            expected=f"the {len(wanted)} finite tensors of this configuration",
            found=found,
            remedy="Correct the configuration to the one the weights were made with; nothing was loaded.",
        )
    module.load_state_dict(tensors, strict=True, assign=True)
    return module
