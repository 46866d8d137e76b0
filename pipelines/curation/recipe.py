"""Curation recipes: the options of every stage under one name. `presets/curation/<name>.yaml` holds those that ship.

A recipe names what differs from the stages' own defaults; unknown parts and unknown keys are errors.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pydantic
import yaml

from pipelines.errors import InputError
from pipelines.recipes import PRESETS, Part

FOLDER = PRESETS / "curation"
OWN_FOLDER = "TUBELET_CURATION"
"""Environment variable that names a folder with more recipes."""
PARTS = {
    "scenes": "pipelines.curation.scenes:SceneConfig", "embedding": "pipelines.curation.embedding:EmbeddingSettings",
    "duplicates": "pipelines.curation.duplicates:DuplicatesConfig", "clusters": "pipelines.curation.clustering:ClustersConfig",
    "selection": "pipelines.curation.selection:SelectionConfig", "drift": "pipelines.curation.drift:DriftConfig",
}  # fmt: skip
"""Each part of a recipe, and the options that it sets."""


class CurationRecipe(Part):
    """For each part the options that differ from its defaults."""

    scenes: dict[str, Any] = pydantic.Field(default={})
    embedding: dict[str, Any] = pydantic.Field(default={})
    duplicates: dict[str, Any] = pydantic.Field(default={})
    clusters: dict[str, Any] = pydantic.Field(default={})
    selection: dict[str, Any] = pydantic.Field(default={})
    drift: dict[str, Any] = pydantic.Field(default={})


def recipe_files() -> dict[str, Path]:
    """Curation recipes by name: those that ship, and those of the folder in TUBELET_CURATION when it is set."""
    own = os.environ.get(OWN_FOLDER)
    return {path.stem: path for folder in (FOLDER, *([Path(own)] if own else [])) for path in sorted(folder.glob("*.yaml"))}


def load_curation(name_or_path: str | Path) -> CurationRecipe:
    """A recipe by name, or a YAML file by path, with every part's options tried; raises `InputError` that says what is wrong."""
    known = recipe_files()
    path = known.get(str(name_or_path), Path(name_or_path))
    if not path.is_file():
        raise InputError(
            f"no curation recipe {name_or_path}", expected=f"one of {', '.join(known)}, or a YAML file", found="neither",
            remedy="name one of these, or write a file from pipelines/presets/curation/nano.yaml",
        )  # fmt: skip
    try:
        recipe = CurationRecipe.model_validate(yaml.safe_load(path.read_text()) or {})
    except (pydantic.ValidationError, yaml.YAMLError) as error:
        raise InputError(f"curation recipe {path} cannot be used", found=str(error), remedy="mend the keys named above") from error
    for part in PARTS:
        _options(part, getattr(recipe, part), f"part {part} of curation recipe {path.name}")
    return recipe


def stage_options(preset: str | Path, part: str, replaced: dict[str, Any] | None = None) -> Any:
    """The options of one part (an instance of its class in PARTS): its defaults, the recipe's values, then `replaced`."""
    recipe = load_curation(preset)
    return _options(part, {**getattr(recipe, part), **(replaced or {})}, f"the options of {part}")


def _options(part: str, values: dict[str, Any], where: str) -> Any:
    module, _, name = PARTS[part].partition(":")
    kind: type[Part] = getattr(importlib.import_module(module), name)
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as error:
        found = "; ".join(": ".join(part for part in (".".join(map(str, told["loc"])), _words(told["msg"])) if part) for told in error.errors())
        raise InputError(
            f"{where} cannot be used", expected="values for " + ", ".join(kind.model_fields), found=found, remedy="mend the values named here"
        ) from error


def _words(message: str) -> str:
    """A message of pydantic's, or of a validator of ours, which it calls a value error."""
    return message.lower().removeprefix("value error, ")
