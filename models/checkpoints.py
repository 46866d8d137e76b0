"""Weight files as they lie on disk: ``.pt`` checkpoints, safetensors, Hugging Face folders and our own folders.

No pickle is ever executed: pickled files go through ``torch.load(weights_only=True)``, everything else is safetensors.
Tensors are mapped from the file where its format allows (private pages: writing to them changes no file), so opening a
4 GB checkpoint to take one part reads that part only. While mapped tensors live, do not overwrite the file in place.
"""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.errors import WeightsError

Layout = Literal["official", "huggingface", "tubelet"]
Tensors = dict[str, Tensor]

_SHARD_INDEX = ".index.json"
_FOLDER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in the order transformers itself looks
_WHOLE = ""
_NEVER_IN_TEXT = frozenset(range(9)) | frozenset(range(14, 27))

PART_MEANINGS = {
    "encoder": "the student encoder as trained last, which PyTorch Hub and Hugging Face publish for 2.0",
    "target_encoder": "the moving average (EMA) of the encoder, which upstream's evaluations use",
    "ema_encoder": "the moving average of a distilled 2.1 encoder, which PyTorch Hub publishes for ViT-B and ViT-L",
    "predictor": "the predictor, masked or action-conditioned",
    "classifiers": "probes trained side by side on the same features",
}


@dataclass(frozen=True)
class Checkpoint:
    """What a file or folder holds: tensors by part (one part named "" when it is a flat state dict), and the rest.

    ``ignored`` names the entries of each part ("" also for the file itself) that are no tensors: epoch, optimizer ...
    """

    path: Path
    layout: Layout
    parts: dict[str, Tensors]
    ignored: dict[str, tuple[str, ...]]

    @property
    def is_flat(self) -> bool:
        return set(self.parts) == {_WHOLE}


def read_checkpoint(path: Path | str, part: str | None = None) -> Tensors:
    """Tensors by key, as named in the file, from a weight file or folder.

    ``path``: a ``.pt``/``.pth``/``.tar`` or ``.safetensors`` file, a Hugging Face folder (whole or in shards), or a
    folder of ours. A training checkpoint holds several parts (``encoder``, ``target_encoder``, ``predictor`` ...), a
    probe file ``classifiers.0``, ``classifiers.1`` ...; in a folder of ours each file is a part. ``part`` must name one
    whenever there are several, because encoder and target_encoder are different weights and neither is the default.
    Entries that are no tensors are left out. Raises WeightsError naming the file.
    """
    return dict(choose_part(open_checkpoint(path), part)[1])


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Everything in a weight file or folder, mapped. Raises WeightsError."""
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if path.suffix == ".safetensors":
        tensors = read_safetensors(path)
        return Checkpoint(path, _file_layout(path, tensors), {_WHOLE: tensors}, {})
    content = _read_pickled(path)
    parts, ignored = _split(content)
    if not parts:
        raise WeightsError(
            f"{path} holds no weights",
            expected="tensors by name, or parts that hold them",
            found=f"{type(content).__name__} with {', '.join(map(str, content)) or 'nothing'}"
            if isinstance(content, dict)
            else type(content).__name__,
            remedy="Take a checkpoint that holds a state dict.",
        )
    return Checkpoint(path, _file_layout(path, next(iter(parts.values()))), parts, ignored)


def choose_part(checkpoint: Checkpoint, part: str | None, among: tuple[str, ...] | None = None) -> tuple[str, Tensors]:
    """(name, tensors) of the named part, or of the only one; ``among`` narrows what may be chosen. WeightsError."""
    candidates = tuple(checkpoint.parts) if among is None else among
    if part is None:
        if len(candidates) == 1:
            return candidates[0], checkpoint.parts[candidates[0]]
        raise WeightsError(
            f"{checkpoint.path} is not one set of weights",
            expected="the name of one part",
            found=f"parts {', '.join(candidates)}: {_explained(candidates)}",
            remedy="Choose one (part=NAME, or --part NAME); they are different weights, so none is the default.",
        )
    if part not in candidates:
        raise WeightsError(
            f"{checkpoint.path} has no part {part}" + ("" if among is None else " of this kind"),
            expected=f"one of {', '.join(candidates)}" if any(candidates) else "no part: it is one set of weights",
            found=part,
            remedy="Name one of them." if any(candidates) else "Name no part.",
        )
    return part, checkpoint.parts[part]


def read_safetensors(path: Path) -> Tensors:
    """Tensors of one safetensors file. Raises WeightsError naming it."""
    if path.is_dir():
        raise WeightsError(
            f"{path} is a folder", expected="a safetensors file", remedy="Name the file, or open the folder around it."
        )
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist", remedy="Check the path.") from error
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} is damaged or no safetensors file",
            found=_sniffed(path) or str(error),
            remedy="Copy or download it again.",
        ) from error


def write_safetensors(tensors: Tensors, path: Path, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file with the permissions of any new file; safetensors alone lets only its owner read it."""
    path.touch()
    permissions = path.stat().st_mode & 0o777
    save_file(tensors, path, metadata)
    path.chmod(permissions)


def is_huggingface_folder(folder: Path) -> bool:
    """Whether transformers would take this folder for a model, judged by its weight files or its config.json."""
    if any((folder / f"{name}{end}").exists() for name in _FOLDER_WEIGHTS for end in ("", _SHARD_INDEX)):
        return not is_ours(folder / "model.safetensors")
    return _architecture(folder) is not None


def huggingface_folder(path: Path) -> Path:
    """The Hugging Face folder itself, or the one around its weight file. Raises WeightsError for any other file in it."""
    if path.is_dir():
        return path
    opened = next((name for name in _FOLDER_WEIGHTS if (path.parent / name).is_file()), None)
    if path.name != opened:
        raise WeightsError(
            f"{path} is not the weight file of its folder",
            expected=opened or " or ".join(_FOLDER_WEIGHTS),
            found=path.name,
            remedy=f"Name the folder {path.parent}, or give the file a folder of its own with its config.json.",
        )
    return path.parent


def read_huggingface_tensors(folder: Path) -> Tensors:
    """All tensors of a Hugging Face folder under their own names, from one file or from shards. WeightsError."""
    for name in _FOLDER_WEIGHTS:
        if (folder / name).is_file():
            return _read_tensors(folder / name)
        if (folder / f"{name}{_SHARD_INDEX}").is_file():
            return _read_shards(folder / f"{name}{_SHARD_INDEX}")
    present = sorted(entry.name for entry in folder.iterdir())
    raise WeightsError(
        f"{folder} has no weights",
        expected=" or ".join(f"{name} (or {name}{_SHARD_INDEX} with its shards)" for name in _FOLDER_WEIGHTS),
        found=", ".join(present[:8]) or "an empty folder",
        remedy="Download the weight files too.",
    )


def read_json(path: Path, purpose: str) -> dict[str, Any]:
    """A JSON object. Raises WeightsError naming the file and what it is for."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise WeightsError(
            f"{path} does not exist", expected=purpose, remedy="Download it from where the weights came from."
        ) from error
    except (ValueError, OSError) as error:
        raise WeightsError(
            f"{path} cannot be read as JSON", expected=purpose, found=str(error), remedy="Download it again."
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(
            f"{path} is no JSON object", expected=purpose, found=type(content).__name__, remedy="Download it again."
        )
    return content


def _open_folder(folder: Path) -> Checkpoint:
    if is_huggingface_folder(folder):
        return Checkpoint(folder, "huggingface", {_WHOLE: read_huggingface_tensors(folder)}, {})
    ours = sorted(path for path in folder.glob("*.safetensors") if is_ours(path))
    if ours:
        return Checkpoint(folder, "tubelet", {path.stem: read_safetensors(path) for path in ours}, {})
    present = sorted(entry.name for entry in folder.iterdir())
    raise WeightsError(
        f"{folder} is a folder without weights that this project knows",
        expected="config.json with model.safetensors (Hugging Face), or NAME.safetensors with NAME.json (ours)",
        found=", ".join(present[:8]) or "an empty folder",
        remedy="Name the weight file itself, or the folder that holds it.",
    )


def is_ours(path: Path) -> bool:
    """Whether a safetensors file has our description beside it."""
    try:
        description = json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(description, dict) and {"format", "class", "config"} <= description.keys()


def _architecture(folder: Path) -> str | None:
    try:
        return json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None


def _file_layout(path: Path, tensors: Tensors) -> Layout:
    if path.suffix == ".safetensors" and is_ours(path):
        return "tubelet"
    foreign = re.compile(r"^(?:vjepa2\.)?(?:encoder\.(?:layer|embeddings|layernorm)|predictor\.(?:layer|embeddings))\.")
    return "huggingface" if any(foreign.match(key) for key in tensors) else "official"


def _read_tensors(path: Path) -> Tensors:
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    parts, _ = _split(_read_pickled(path))
    if set(parts) != {_WHOLE}:
        raise WeightsError(f"{path} is not one set of weights", expected="tensors by name", remedy="Download it again.")
    return parts[_WHOLE]


def _read_shards(index_path: Path) -> Tensors:
    weight_map = read_json(index_path, "the list of shards").get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise WeightsError(
            f"{index_path} lists no shards", expected="weight_map: tensor name to file", remedy="Download it again."
        )
    shards = sorted(set(weight_map.values()))
    outside = [name for name in shards if Path(name).name != name]
    if outside:
        raise WeightsError(
            f"{index_path} names files outside its folder",
            expected="plain file names",
            found=", ".join(outside),
            remedy="Do not use this folder; take the weights from their publisher.",
        )
    absent = [name for name in shards if not (index_path.parent / name).is_file()]
    if absent:
        raise WeightsError(
            f"{index_path.parent} lacks {len(absent)} of its {len(shards)} shards",
            expected=f"{len(shards)} files",
            found=f"missing {', '.join(absent[:3])}" + (f" and {len(absent) - 3} more" if len(absent) > 3 else ""),
            remedy="Download the missing files into the folder.",
        )
    tensors: Tensors = {}
    for name in shards:
        shard = _read_tensors(index_path.parent / name)
        promised = {key for key, file in weight_map.items() if file == name}
        if promised - shard.keys():
            raise WeightsError(
                f"{index_path.parent / name} lacks tensors that {index_path.name} promises",
                found=f"missing {', '.join(sorted(promised - shard.keys())[:8])}",
                remedy="Download this shard again.",
            )
        tensors.update(shard)
    return tensors


def _read_pickled(path: Path) -> Any:
    try:
        # Only the zip format can be mapped; files of torch before 1.6 are read whole.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch comments on what is no checkpoint; our error says it
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist", remedy="Check the path.") from error
    except Exception as error:  # torch raises many types for foreign, truncated and unsafe pickles
        code = re.search(r"GLOBAL (\S+)", str(error))
        raise WeightsError(
            f"{path} cannot be read as weights",
            expected="a checkpoint of plain tensors (weights_only)",
            found=(f"a pickle that wants to run {code.group(1)}; nothing was run" if code else "")
            or _sniffed(path)
            or ("no checkpoint of torch" if "weights_only" in str(error) else str(error).partition("\n")[0])
            or type(error).__name__,
            remedy="Take a file that holds tensors only, from a source you trust."
            if code
            else "Download it again, or take a file that holds tensors only.",
        ) from error


def _sniffed(path: Path) -> str:
    """What a file that is no weight file looks like, in words; empty when it looks like nothing known."""
    try:
        with path.open("rb") as file:
            head = file.read(256).lstrip().lower()
    except OSError:
        return ""
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page, so the download failed"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, so the download stopped at the pointer"
    if head.startswith(b"pk\x03\x04") and not zipfile.is_zipfile(path):
        return "the beginning of a checkpoint whose end is cut off"
    if head and not set(head) & _NEVER_IN_TEXT:
        return "a text file"
    return "" if head else "an empty file"


def _split(content: Any) -> tuple[dict[str, Tensors], dict[str, tuple[str, ...]]]:
    """Parts of an unpickled file, and the names of what is no tensor, by part."""
    parts: dict[str, Tensors] = {}
    ignored: dict[str, tuple[str, ...]] = {}
    if not isinstance(content, dict):
        return parts, ignored
    rest = []
    for name, value in content.items():
        states = {f"{name}.{index}": entry for index, entry in enumerate(value)} if isinstance(value, list) else {}
        known = {part: state for part, state in (states or {str(name): value}).items() if _tensors(state)}
        for part, state in known.items():
            parts[part] = _tensors(state)
            ignored[part] = tuple(str(key) for key in state if key not in parts[part])
        if not known:
            rest.append(str(name))
    if not parts:
        flat = _tensors(content)
        parts, rest = ({_WHOLE: flat} if flat else {}), [name for name in rest if name not in flat]
    ignored[_WHOLE] = tuple(rest)
    return parts, {part: names for part, names in ignored.items() if names}


def _tensors(state: Any) -> Tensors:
    if not isinstance(state, dict):
        return {}
    return {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _explained(parts: tuple[str, ...]) -> str:
    meanings = ((part, PART_MEANINGS.get(part.partition(".")[0])) for part in parts[:8])
    return "; ".join(f"{part} is {meaning}" for part, meaning in meanings if meaning) or "different weights"
