"""What decides an encoder's identity: the data and the recipe, not the machine it is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from assets.pretraining import PretrainConfig, plan_pretrained_encoder
from pipelines.recipes import PRESETS
from pipelines.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store.open(tmp_path / "store")
    opened.accept(opened.produce("training_shards", lambda folder: {}), {})
    return opened


def identity(store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch, config: PretrainConfig | None = None, phase: dict[str, Any] | None = None, **pretraining: Any) -> str:
    recipe = yaml.safe_load((PRESETS / "smoke.yaml").read_text()) | {"name": "mine"}
    recipe["pretraining"] |= pretraining
    recipe["pretraining"]["pretrain"] |= phase or {}
    (folder / "mine.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setenv("TUBELET_RECIPES", str(folder))
    return plan_pretrained_encoder(store, "mine", config or PretrainConfig()).identity


def test_machine_and_speed_do_not_make_another_encoder(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = identity(store, tmp_path, monkeypatch)
    fast = PretrainConfig(threads=8, workers=4, prefetch=9, cache_megabytes=1, max_failure_share=0.5)
    assert plain == identity(store, tmp_path, monkeypatch, fast, {"checkpoint_every": 3}, ranks=8, zero_stage=2)


def test_what_is_drawn_makes_another_encoder(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shards").mkdir()
    elsewhere = [{"name": "theirs", "weight": 1, "shards": str(tmp_path / "shards")}]
    found = {
        identity(store, tmp_path, monkeypatch), identity(store, tmp_path, monkeypatch, repeat_cap=3), identity(store, tmp_path, monkeypatch, mixture=elsewhere),
        identity(store, tmp_path, monkeypatch, phase={"fps": None, "stride": 2}), identity(store, tmp_path, monkeypatch, PretrainConfig(log_exposures=True)),
    }  # fmt: skip
    (tmp_path / "shards" / "shard_index.parquet").write_bytes(b"an index")
    found.add(identity(store, tmp_path, monkeypatch, mixture=elsewhere))
    assert len(found) == 6
