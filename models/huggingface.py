"""Hugging Face folders of transformers' VJEPA2Model and VJEPA2ForVideoClassification, read and written without transformers."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.assembly import Shapes, check_tensors, empty_module, key_problems, listed, module_shapes
from models.checkpoints import read_huggingface_tensors, read_json, write_safetensors
from models.encoder import EncoderConfig, VideoEncoder
from models.errors import ShapeError, WeightsError
from models.huggingface_names import (
    MASK_TOKENS,
    MODEL_TYPE,
    config_to_foreign,
    configs_from_foreign,
    foreign_names,
)
from models.predictor import MaskedPredictor
from models.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from models.probes import AttentiveProbe

_PARTS: dict[str, type[nn.Module]] = {"encoder": VideoEncoder, "predictor": MaskedPredictor, "probe": AttentiveProbe}
_WRAPPER = "vjepa2."
_LOG = logging.getLogger(__name__)


class VJEPA2(nn.Module):
    """What a Hugging Face folder holds: an encoder, and a predictor and a probe where it has them.

    ``class_names``: names of the probe's classes by index, or None. transformers' predictor always fills in mask token
    1, which upstream never trained: pass ``mask_token=1`` to ``predictor`` for its numbers, 0 for the trained token.
    """

    def __init__(
        self,
        encoder: VideoEncoder,
        predictor: MaskedPredictor | None = None,
        probe: AttentiveProbe | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.predictor = predictor
        self.probe = probe
        self.class_names = None if class_names is None else tuple(class_names)
        if self.class_names is not None and (probe is None or len(self.class_names) != probe.config.num_classes):
            raise WeightsError(
                "The class names do not fit the probe",
                expected="no names" if probe is None else f"{probe.config.num_classes} names",
                found=f"{len(self.class_names)} names",
                remedy="Name every class of the probe once, in the order of its outputs.",
            )

    @property
    def config(self) -> EncoderConfig:
        """The encoder's configuration; predictor and probe carry their own."""
        return self.encoder.config

    def forward(
        self, video: Tensor, token_ids: Tensor | Sequence[Tensor] | None = None, layers: Sequence[int] | None = None
    ) -> Any:
        """video (B, C, T, H, W) -> logits (B, classes) of the whole clip with a probe, else what the encoder returns.

        Raises ShapeError, also when a probe is asked for part of the clip: use ``.encoder`` for that.
        """
        if self.probe is None:
            return self.encoder(video, token_ids, layers)
        if token_ids is not None or layers is not None:
            raise ShapeError(
                "A classifier reads the whole clip",
                expected="no token_ids and no layers",
                found="one of them",
                remedy="Call .encoder for features.",
            )
        return self.probe(self.encoder(video))


@dataclass(frozen=True)
class FolderPart:
    """One part of a Hugging Face folder as it lies there: its tensors under transformers' names, and what is wrong."""

    name: str
    config: Any
    tensors: dict[str, Tensor]
    problems: tuple[str, ...]


@torch.inference_mode(False)  # else weights loaded under it could never be trained
def from_huggingface(folder: Path | str) -> VJEPA2:
    """The float32 model in a Hugging Face folder (config.json with weights, whole or in shards), strict.

    A classifier folder brings its probe, which computes what transformers computes: its norms have eps 1e-6 (upstream's
    1e-5) and as many heads as the encoder (upstream's 16; ViT-g has 22, so the published ViT-g classifiers are another
    function there than in upstream's code, on the same weights). A folder without any predictor tensor has none.
    Raises WeightsError naming the file.
    """
    folder = Path(folder)
    settings, tensors = _read_folder(folder)
    configs, labels = _configs(settings, tensors, folder)
    empty = {part: empty_module(_PARTS[part], config) for part, config in configs.items()}
    _check(empty, tensors, folder)
    parts: dict[str, Any] = {part: _filled(part, module, tensors) for part, module in empty.items()}
    named = labels if labels and any(not name.startswith("LABEL_") for name in labels) else None
    return VJEPA2(parts["encoder"], parts.get("predictor"), parts.get("probe"), named)


@torch.inference_mode(False)
def encoder_from_huggingface(folder: Path | str) -> VideoEncoder:
    """The float32 encoder alone of a Hugging Face folder; its other tensors are not looked at. Raises WeightsError."""
    folder = Path(folder)
    settings, tensors = _read_folder(folder)
    config = configs_from_foreign(settings, folder / "config.json", None)["encoder"]
    kept = {key: value for key, value in tensors.items() if key.startswith("encoder.")}
    empty = empty_module(VideoEncoder, config)
    _check({"encoder": empty}, kept, folder)
    return _filled("encoder", empty, kept)


def describe_folder(folder: Path, tensors: Mapping[str, Tensor]) -> list[FolderPart]:
    """The parts of a Hugging Face folder from its config.json and its tensors; problems are told, not raised."""
    bare = {key.removeprefix(_WRAPPER): value for key, value in tensors.items()}
    grouped: dict[str, dict[str, Tensor]] = {}
    for key, value in bare.items():
        stem = key.partition(".")[0]
        grouped.setdefault("probe" if stem in ("pooler", "classifier") else stem, {})[key] = value
    try:
        configs, _ = _configs(read_json(folder / "config.json", "the model's configuration"), bare, folder)
    except WeightsError as error:
        return [FolderPart(name, None, found, (str(error),)) for name, found in grouped.items()]
    parts = []
    for name in dict.fromkeys((*configs, *grouped)):
        found, config = grouped.get(name, {}), configs.get(name)
        wanted = {} if config is None else _foreign_shapes(name, module_shapes(empty_module(_PARTS[name], config)))
        problems = tuple(f"{label}: {listed(keys)}" for label, keys in key_problems(wanted, found))
        parts.append(FolderPart(name, config, found, problems))
    return parts


def to_huggingface(module: VideoEncoder | VJEPA2, folder: Path | str, image_size: int = 256) -> Path:
    """Write a folder that transformers opens: config.json, model.safetensors, video_preprocessor_config.json.

    ``image_size`` (px, square) becomes crop_size: transformers computes rotary positions for this size only, whatever
    it is given. A VJEPA2 with a probe is written as VJEPA2ForVideoClassification, anything else as VJEPA2Model.
    A model without predictor is written without one, with a predictor depth of 0: no weights are invented. transformers
    then warns that it initialises the predictor's few other tensors; pass ``skip_predictor=True`` there.
    Refused with WeightsError: what transformers would compute differently, among it a probe with other norms (1e-5 is
    the default of AttentiveProbeConfig, transformers has 1e-6) or another number of heads than the encoder's.
    Weights keep their dtype. Returns the folder.
    """
    model = VJEPA2(module) if isinstance(module, VideoEncoder) else module
    if not isinstance(model, VJEPA2):
        raise WeightsError(
            f"{type(model).__name__} has no Hugging Face layout",
            expected="VideoEncoder or VJEPA2",
            remedy="Put encoder, predictor and probe into a VJEPA2.",
        )
    parts = {part: found for part in _PARTS if (found := getattr(model, part)) is not None}
    configs = {part: found.config for part, found in parts.items()}
    if model.config.img_size != (image_size, image_size):
        _LOG.warning("Exporting for %d px an encoder trained at %d x %d px", image_size, *model.config.img_size)
    settings = config_to_foreign(configs["encoder"], configs.get("predictor"), configs.get("probe"), image_size)
    tensors = {key: value for part, found in parts.items() for key, value in _to_theirs(part, found).items()}
    classifies = "probe" in parts
    if classifies:
        tensors = {
            key if key.startswith(("pooler.", "classifier.")) else _WRAPPER + key: value
            for key, value in tensors.items()
        }
        names = model.class_names or [f"LABEL_{index}" for index in range(configs["probe"].num_classes)]
        settings["id2label"] = {str(index): name for index, name in enumerate(names)}
        settings["label2id"] = {name: index for index, name in enumerate(names)}
    settings |= {
        "architectures": ["VJEPA2ForVideoClassification" if classifies else "VJEPA2Model"],
        "model_type": MODEL_TYPE,
        "dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch."),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", settings)
    write_safetensors(tensors, folder / "model.safetensors", {"format": "pt"})
    _write_json(folder / "video_preprocessor_config.json", _preprocessing(image_size))
    return folder


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config.json, tensors without the prefix that classifier folders have)."""
    if folder.is_file() or not folder.exists():
        raise WeightsError(
            f"{folder} is a file" if folder.is_file() else f"{folder} does not exist",
            expected="a Hugging Face folder",
            remedy="Name the folder that holds config.json and model.safetensors.",
        )
    settings = read_json(folder / "config.json", "the model's configuration")
    return settings, {key.removeprefix(_WRAPPER): value for key, value in read_huggingface_tensors(folder).items()}


def _configs(
    settings: dict[str, Any], tensors: Mapping[str, Tensor], folder: Path
) -> tuple[dict[str, Any], list[str] | None]:
    """(configs by part that the folder holds, names of the classes or None)."""
    labels = _labels(settings, tensors, folder / "config.json")
    configs = configs_from_foreign(settings, folder / "config.json", None if labels is None else len(labels))
    if not any(key.startswith("predictor.") for key in tensors):
        configs.pop("predictor", None)
    return configs, labels


def _labels(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> list[str] | None:
    """Names of the classes, invented ones as transformers invents them; None when the folder is no classifier."""
    classifies = "VJEPA2ForVideoClassification" in (settings.get("architectures") or ())
    if not classifies and not any(key.startswith(("pooler.", "classifier.")) for key in tensors):
        return None
    named = settings.get("id2label")
    try:
        if named is None:
            return [f"LABEL_{index}" for index in range(settings.get("num_labels", 2))]
        return [str(named[str(index)]) for index in range(len(named))]
    except (KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} names its classes incompletely",
            expected="id2label from 0 upwards",
            found=str(named)[:200],
            remedy="Take the config.json that was published with the weights.",
        ) from error


def _check(parts: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Raise WeightsError, in the folder's own names, unless the tensors are those of these parts."""
    wanted: dict[str, tuple[int, ...]] = {}
    for part, module in parts.items():
        wanted |= _foreign_shapes(part, module_shapes(module))
    check_tensors(wanted, tensors, str(folder), f"its config.json ({' and '.join(parts)})")


def _foreign_shapes(part: str, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    foreign: dict[str, tuple[int, ...]] = {}
    masks = [shape for key, shape in shapes.items() if key.startswith("mask_tokens.")]
    if masks:
        foreign[MASK_TOKENS] = (len(masks), *masks[0])
    for key, shape in shapes.items():
        if not key.startswith("mask_tokens."):
            names = foreign_names(part, key)
            foreign |= {name: (shape[0] // len(names), *shape[1:]) for name in names}
    return foreign


def _filled(part: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> Any:
    """The module with float32 copies of the tensors of its part, which were checked before."""
    ours: dict[str, Tensor] = {}
    for key in module.state_dict():
        if key.startswith("mask_tokens."):
            pieces = [tensors[MASK_TOKENS][int(key.removeprefix("mask_tokens."))]]
        else:
            pieces = [tensors[name] for name in foreign_names(part, key)]
        # torch.cat copies already: one copy of the weights at the peak.
        owned = torch.cat(pieces).float() if len(pieces) > 1 else pieces[0].to(torch.float32, copy=True)
        ours[key] = owned.contiguous()
    module.load_state_dict(ours, strict=True, assign=True)
    return module


def _to_theirs(part: str, module: nn.Module) -> dict[str, Tensor]:
    """Tensors of one part under transformers' names, on the CPU, contiguous and sharing no memory with each other."""
    state = {key: value.detach().cpu() for key, value in module.state_dict().items()}
    masks = [state.pop(key) for key in list(state) if key.startswith("mask_tokens.")]
    foreign = {MASK_TOKENS: torch.stack(masks)} if masks else {}
    for key, value in state.items():
        names = foreign_names(part, key)
        # Slices share memory, which the file format refuses; whole tensors need no copy.
        pieces = [piece.clone() for piece in value.chunk(len(names))] if len(names) > 1 else [value.contiguous()]
        foreign |= dict(zip(names, pieces, strict=True))
    return foreign


def _preprocessing(image_size: int) -> dict[str, Any]:
    """What the published folders tell transformers' video processor: short side to 256/224 of the crop, centre crop."""
    return {
        "video_processor_type": "VJEPA2VideoProcessor",
        "do_resize": True,
        "size": {"shortest_edge": int(image_size * 256 / 224)},
        "resample": 2,  # bilinear
        "do_center_crop": True,
        "crop_size": {"height": image_size, "width": image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
