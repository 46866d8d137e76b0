"""Encoders that a person has on disk: found, told apart, hashed, and asked for their licence. Nothing is ever downloaded."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from models.errors import WeightsError
from pipelines.errors import InputError
from pipelines.identity import digest_of, file_sha256
from pipelines.store import MANIFEST

IMAGE_MODELS = ("dinov2", "dinov2_with_registers", "dinov3_vit")
CLIP_MODEL = "vjepa2"
NOT_STATED = "not stated"
_OWN_LICENCES = {"dinov3_vit": "DINOv3 License"}  # of the published weights and of what is made from them, whatever a folder says
_PICKLED = (".pt", ".pth", ".tar")  # official V-JEPA 2 checkpoints
_NOT_NUMBERS = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures")  # of config.json


def find_encoder(name: str, store: Path | None) -> Path:
    """The file or folder that `name` means: a path, or with a store an artefact such as cooled_encoder[nano].

    Raises `InputError` when nothing is there, `MissingArtefact` when the store has no such artefact.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    remedy = "fetch the model's folder first (huggingface-cli download NAME --local-dir FOLDER), then name FOLDER: embedding never uses the network"
    if store is None:
        raise InputError(f"there is no encoder {name}", expected="efficientnet-lite0, or a file or folder with weights that is here", found="nothing there", remedy=remedy)
    from pipelines.weights.locate import locate

    try:
        return locate(name, store)
    except WeightsError as error:
        raise InputError(f"there is no encoder {name}", expected=error.expected, found=error.found, remedy=remedy) from error


def model_type_of(path: Path) -> str:
    """`model_type` of a Hugging Face folder; "vjepa2" also for official checkpoints and our own folders.

    Raises `InputError` on anything that no embedder reads.
    """
    config = path / "config.json" if path.is_dir() else path.with_name("config.json")
    if config.is_file() and path.suffix not in _PICKLED:
        found = str(read_json(config).get("model_type"))
    elif path.suffix in (".safetensors", *_PICKLED) or (path.is_dir() and any(path.glob("*.safetensors"))):
        found = CLIP_MODEL  # no other layout has weights without a config.json; its reader refuses what it does not know
    else:
        found = "neither config.json nor weights"
    if found not in (*IMAGE_MODELS, CLIP_MODEL):
        raise InputError(
            f"{path} holds no encoder that clips can be embedded with", expected=f"model_type {', '.join((*IMAGE_MODELS, CLIP_MODEL))}, or V-JEPA 2 weights",
            found=found, remedy="name the folder that holds config.json and model.safetensors",
        )  # fmt: skip
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model's folder; raises `InputError` when it is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read", expected="a JSON object", found=str(error), remedy="take the file that was published with the weights") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} cannot be read", expected="a JSON object", found=type(content).__name__, remedy="take the file that was published with the weights")
    return content


def deciding_config(folder: Path) -> dict[str, Any]:
    """config.json without the entries that change no number."""
    return {name: value for name, value in read_json(folder / "config.json").items() if name not in _NOT_NUMBERS}


def files_digest(files: Iterable[Path]) -> str:
    """Digest of files by bytes, and of several by name too, wherever they lie."""
    found = sorted((file.name, file_sha256(file)) for file in files)
    return found[0][1] if len(found) == 1 else digest_of(found)


def safetensors_of(folder: Path) -> list[Path]:
    """The weight files of a Hugging Face folder, whole or in shards; raises `InputError` when one is missing."""
    index = folder / "model.safetensors.index.json"
    names = sorted(set(read_json(index).get("weight_map", {}).values())) if index.is_file() else ["model.safetensors"]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise InputError(
            f"{folder} lacks its weights", expected="model.safetensors, or all shards that model.safetensors.index.json lists",
            found=f"no {missing[0]}" if missing else "an index that lists nothing", remedy="copy or download the folder again, with its safetensors files",
        )  # fmt: skip
    return [folder / name for name in names]


def licence_of(path: Path, model_type: str, told: str) -> str:
    """The licence of weights: what the settings say, else what their folder says; with that of the model family if it has one.

    A folder says it in the first lines of README.md (Hugging Face's model card). An artefact of ours names itself: its
    lineage knows more.
    """
    folder = path if path.is_dir() else path.parent
    stated = told or _card_licence(folder / "README.md")
    if not stated and (folder / MANIFEST).is_file():
        manifest = read_json(folder / MANIFEST)
        stated = f"see the lineage of {manifest.get('asset')} {manifest.get('digest')}"
    family = _OWN_LICENCES.get(model_type)
    if family and family.lower().replace(" ", "-") not in stated.lower().replace(" ", "-"):
        return f"{family}; stated: {stated}" if stated else family
    return stated or NOT_STATED


def _card_licence(card: Path) -> str:
    """`license_name`, else `license`, of a model card's front matter; "" when there is none."""
    if not card.is_file():
        return ""
    lines = card.read_text(errors="replace").splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in (line.strip() for line in lines[1:]):
        return ""
    end = next(number for number, line in enumerate(lines[1:], 1) if line.strip() == "---")
    try:
        front = yaml.safe_load("\n".join(lines[1:end]))
    except yaml.YAMLError:
        return ""
    return str(front.get("license_name") or front.get("license") or "") if isinstance(front, dict) else ""
