"""What one phase of pretraining is asked to do, as the file that starts its processes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import pydantic

from pipelines.errors import InputError
from pipelines.identity import digest_of
from pipelines.recipes import OWN_SHARDS, Phase, Recipe
from pipelines.shards.loader import Reading
from pipelines.shards.mixture import index_digest
from pipelines.store import write_atomic


class Spec(pydantic.BaseModel):
    """`shards_folder` is where the mixture's source "training_shards" is. `store` keeps the tombstones. `init_from` is the
    artefact folder of the phase before; the cooldown cannot do without. `threads` and `reading` are a rank's; `log_exposures`
    also writes down what every sample showed, told by the bytes that were decoded; `exclude_refused` shows stand-ins for the clips
    that the guard stopped on. `start_digest` is that of the checkpoint which the recipe starts from."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    recipe: Recipe
    phase: Literal["pretrain", "cooldown"]
    shards_folder: Path
    work_folder: Path
    store: Path
    init_from: Path | None = None
    threads: int = 1
    reading: Reading = Reading()
    log_exposures: bool = False
    exclude_refused: bool = False
    start_digest: str = ""

    @property
    def settings(self) -> Phase:
        return self.recipe.pretraining.pretrain if self.phase == "pretrain" else self.recipe.pretraining.cooldown

    @property
    def checkpoints(self) -> Path:
        return self.work_folder / "checkpoints"

    @property
    def result(self) -> Path:
        return self.work_folder / "result"

    def lineage(self) -> dict[str, Any]:
        """Digests of what goes in."""
        return {
            "recipe": self.recipe.name, "recipe_digest": self.recipe.digest("encoder", "predictor", "pretraining"), "phase": self.phase,
            "seed": self.recipe.seed, "sources": self.sources(), "parent": _digest_in(self.init_from) if self.init_from else None,
        }  # fmt: skip

    def sources(self) -> list[dict[str, Any]]:
        """The mixture's sources, each with the digest of its shards."""
        return [
            {**source.model_dump(mode="json"), **({"digest": _digest_in(self.shards_folder)} if source.shards == OWN_SHARDS else _elsewhere(source.shards))}
            for source in self.recipe.pretraining.mixture
        ]

    def identity(self) -> str:
        """Digest of what decides the weights."""
        shapes = [self.recipe.encoder.model_dump(mode="json"), self.recipe.predictor.model_dump(mode="json")]
        lineage = {key: value for key, value in self.lineage().items() if key not in ("recipe", "recipe_digest")}
        start = [self.start_digest] if self.start_digest else []
        return digest_of([lineage, shapes, self.recipe.pretraining.deciding(self.phase), *start])


def write_spec(
    work_folder: Path, recipe: Recipe, phase: Literal["pretrain", "cooldown"], shards_folder: Path, store: Path, **options: Any
) -> Path:
    """Write `work_folder`/spec.json for `python -m pipelines.pretraining.run --spec` and return its path."""
    work_folder.mkdir(parents=True, exist_ok=True)
    spec = Spec(recipe=recipe, phase=phase, shards_folder=shards_folder, work_folder=work_folder, store=store, **options)
    write_atomic(work_folder / "spec.json", spec.model_dump_json(indent=1))
    return work_folder / "spec.json"


def read_spec(path: Path) -> Spec:
    """Raises `InputError` that names what is wrong."""
    try:
        spec = Spec.model_validate_json(path.read_text())
    except (OSError, pydantic.ValidationError) as error:
        raise InputError(f"{path} does not describe a pretraining phase", found=str(error), remedy="write it with write_spec") from error
    if spec.phase == "pretrain" and bool(spec.start_digest) != (spec.recipe.pretraining.start_from is not None):
        raise InputError(
            "the weights to start from are not settled", expected="start_from in the recipe with its digest, or neither",
            found=f"start_from {spec.recipe.pretraining.start_from}, digest {spec.start_digest or 'none'}", remedy="write the spec with write_spec",
        )  # fmt: skip
    if spec.phase == "cooldown" and spec.init_from is None:
        raise InputError(
            "the cooldown has nothing to cool", expected="init_from, the folder of the pretrained encoder", found="none",
            remedy="materialize pretrained_encoder first",
        )  # fmt: skip
    return spec


def _elsewhere(shards: str) -> dict[str, str]:
    """Where shards are that the graph has not made, told so that it can be found from any folder, and the digest of their index."""
    return {"shards": shards if "://" in shards else os.path.abspath(shards), "digest": index_digest(shards)}


def _digest_in(folder: Path) -> str:
    """Content digest of an artefact folder, from its manifest; of the files' names and sizes where there is none."""
    manifest = folder / "MANIFEST.json"
    if manifest.is_file():
        return str(json.loads(manifest.read_text())["digest"])
    return digest_of(sorted((str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*") if path.is_file()))
