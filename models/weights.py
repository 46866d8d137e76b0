"""Weight files: released weights in, ours out, strict to the last tensor. This module is the door; rooms lie behind it.

* ``read_checkpoint``: tensors of a file or folder as they are named there.
* ``from_official``, ``to_official``, ``infer_config``: the layout of facebookresearch/vjepa2.
* ``from_huggingface``, ``to_huggingface``, ``VJEPA2``: the folders of transformers' VJEPA2 models.
* ``load_encoder``, ``inspect_checkpoint``: open or describe anything of the above.
* ``save_module``, ``load_module``, ``state_digest``: our own folders.
* ``RELEASED``: every released checkpoint, part by part.
"""

from __future__ import annotations

from models.checkpoints import read_checkpoint
from models.huggingface import VJEPA2, from_huggingface, to_huggingface
from models.inspection import Inspection, PartInspection, inspect_checkpoint, load_encoder
from models.module_files import load_module, save_module, state_digest
from models.official import from_official, infer_config, to_official
from models.released import RELEASED, ReleasedModel, ReleasedPart

__all__ = [
    "RELEASED",
    "VJEPA2",
    "Inspection",
    "PartInspection",
    "ReleasedModel",
    "ReleasedPart",
    "from_huggingface",
    "from_official",
    "infer_config",
    "inspect_checkpoint",
    "load_encoder",
    "load_module",
    "read_checkpoint",
    "save_module",
    "state_digest",
    "to_huggingface",
    "to_official",
]
