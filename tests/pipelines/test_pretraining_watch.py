"""The watch measures the same whatever the number of ranks, sees a target that knows the place alone, and tells a collapse."""

from __future__ import annotations

import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted_collapse import Plant, measurements, textured_shards, train
from torch import Tensor, nn

from models.encoder import EncoderConfig
from pipelines.pretraining.run import build_student
from pipelines.pretraining.watch import Watch
from pipelines.recipes import Phase, load_recipe
from pipelines.shards.loader import Shown
from pipelines.training.ema import make_target
from pipelines.training.engine import EngineConfig, PlainEngine
from pipelines.training.metrics import Health, health

RECIPE = load_recipe("smoke")
CLIPS = 64
NUMBERS = {"mean_loss": 0.5, "data_wait": 0.0}


def phase(**changes: Any) -> Phase:
    settings: Phase = RECIPE.pretraining.pretrain
    return settings.model_copy(update={"global_batch": 32, "height": 48, "width": 48, "steps": 100, **changes})


def grid(settings: Phase) -> tuple[int, int, int]:
    return settings.frames // 2, settings.height // 16, settings.width // 16


def videos(settings: Phase) -> Tensor:
    """CLIPS clips (CLIPS, 3, T, H, W) uint8, the second half of them brighter."""
    shape = (CLIPS, 3, settings.frames, settings.height, settings.width)
    clips = torch.randint(0, 128, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    clips[CLIPS // 2 :] += 127
    return clips


def shown(number: int, sources: int) -> Shown:
    source = f"source {number * sources // CLIPS}"
    return Shown(source, f"clip {number}", "", np.zeros(1, np.int64), Fraction(1, 8), 0)


class Rank(PlainEngine):
    """One rank of several that are threads of this process."""

    def __init__(self, module: nn.Module, rank: int, world: int, barrier: threading.Barrier, board: list[Tensor]) -> None:
        super().__init__(module, EngineConfig())
        self.rank, self.world = rank, world
        self._barrier, self._board = barrier, board

    def gather(self, values: Tensor) -> Tensor:
        self._board[self.rank] = values
        self._barrier.wait()
        found = torch.cat(self._board)
        self._barrier.wait()
        return found

    def mean(self, values: Tensor) -> Tensor:
        return self.gather(values.unsqueeze(0)).mean(dim=0)


def watched(engine: PlainEngine, settings: Phase, sources: int, times: int = 1) -> list[Health]:
    """What a rank measures after it has remembered its share of the clips."""
    target = make_target(engine.module.encoder)  # type: ignore[arg-type]
    watch = Watch(engine, target, settings, grid(settings))
    share = settings.global_batch // engine.world
    for step in range(watch.buffered + 1):  # the last of them is not kept
        first = (step % watch.buffered) * settings.global_batch + engine.rank * share
        own = range(first, first + share)
        watch.remember(step, videos(settings)[first : first + share], [shown(number, sources) for number in own])
    return [watch.measure(NUMBERS)[0] for _ in range(times)]


@pytest.mark.parametrize("sources", [1, 4])
def test_two_ranks_and_micro_batches_measure_what_one_does(sources: int) -> None:
    settings, barrier, board = phase(accumulation=2), threading.Barrier(2, timeout=60), [torch.empty(0)] * 2
    engines = [Rank(build_student(RECIPE, settings), rank, 2, barrier, board) for rank in range(2)]
    found: dict[int, Health] = {}

    def run(engine: Rank) -> None:
        found[engine.rank] = watched(engine, settings, sources)[0]

    ranks = [threading.Thread(target=run, args=(engine,)) for engine in engines]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    alone = watched(PlainEngine(build_student(RECIPE, phase()), EngineConfig()), phase(), sources)[0]
    assert ("source_knn" if sources > 1 else "halves_recall") in alone
    assert sorted(found) == [0, 1]
    for measured in found.values():
        assert measured == pytest.approx(alone, rel=1e-4, abs=1e-6)


def test_sources_are_told_by_neighbours_where_there_are_several() -> None:
    engine = PlainEngine(build_student(RECIPE, phase()), EngineConfig())
    assert watched(engine, phase(), 2)[0]["source_knn"] == 1  # bright and dark
    assert "source_knn" not in watched(engine, phase(), 1)[0]


def test_lidar_is_measured_every_fifth_time() -> None:
    history = watched(PlainEngine(build_student(RECIPE, phase()), EngineConfig()), phase(), 1, times=7)
    assert ["lidar" in measured for measured in history] == [True, False, False, False, False, True, False]
    assert 1 < history[0]["lidar"] == history[5]["lidar"] < CLIPS


class KnowsThePlace(nn.Module):
    """Tokens that differ from place to place and not at all from clip to clip."""

    def __init__(self, config: EncoderConfig, places: int) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Parameter(torch.randn(places, config.embed_dim, generator=torch.Generator().manual_seed(2)))

    def forward(self, video: Tensor, token_ids: Tensor | None = None, all_levels: bool = False) -> Tensor:
        return self.tokens.expand(len(video), -1, -1) if token_ids is None else self.tokens[token_ids]


def test_a_target_that_knows_the_place_alone_has_no_spread_over_clips() -> None:
    settings = phase()
    engine = PlainEngine(build_student(RECIPE, settings), EngineConfig())
    shape = grid(settings)
    target = KnowsThePlace(engine.module.encoder.config, shape[0] * shape[1] * shape[2])  # type: ignore[union-attr, arg-type]
    engine.module.encoder = target
    watch = Watch(engine, target, settings, shape)
    for step in range(watch.buffered):
        watch.remember(step, videos(settings)[step * 32 : step * 32 + 32], [])
    measured = watch.measure(NUMBERS)[0]
    assert measured["target_std"] == pytest.approx(0, abs=1e-5) and measured["cosine"] == pytest.approx(1, abs=1e-5)
    assert measured["floor"] > 0.5 and measured["ema_distance"] == 0


@pytest.fixture(scope="module")
def textures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return textured_shards(tmp_path_factory.mktemp("textures"))


@pytest.mark.parametrize(("plant", "states"), [("healthy", {"healthy", "starved"}), ("gradient", {"collapsing", "collapsed"})])
def test_a_gradient_through_the_target_is_called_a_collapse_and_a_healthy_training_is_not(
    textures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Plant, states: set[str]
) -> None:
    rate = {"start": 1e-4, "peak": 2e-3, "final": 2e-3, "warmup_steps": 10, "shape": "constant"}
    rows = train(tmp_path, textures, "smoke", plant, 0, monkeypatch, steps=70, global_batch=16, height=48, width=48, learning_rate=rate, ema=[0.99, 0.99])
    assert health(measurements(rows)).state in states
