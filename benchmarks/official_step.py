"""The official trainer's step and its data, from a checkout of facebookresearch/vjepa2, around our weights.

Networks, wrappers, optimizer, schedules, dataset, transforms and mask collator are theirs. Only what their
app/vjepa/train.py does inside main() is written here again: forward, loss, backward, optimizer, average, log line. Two things
are left out, in their favour: DistributedDataParallel, which they wrap around a single process too (their back end is
NCCL, so on a CPU their program does not start), and the lines that watch memory.
"""

from __future__ import annotations

import copy
import importlib
import logging
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers import import_official, official_encoder, official_predictor, stand_in
from pipelines.pretraining.objective import JEPA
from pipelines.recipes import Phase

STEPS_AN_EPOCH = 300
"""As in their configurations: warm-up and length are told in epochs."""

Part = Callable[[str], AbstractContextManager[None]]
"""Called with a part's name around each part of a step."""


class OfficialStep:
    """Their student, target encoder and optimizer. `half`: bfloat16 autocast under their gradient scaler; `compiled` and
    `checkpointing` as their options compile_model and use_activation_checkpointing."""

    def __init__(
        self, checkout: Path, student: JEPA, phase: Phase, *, half: bool = False, compiled: bool = False, checkpointing: bool = False
    ) -> None:
        import_official(checkout)
        wrappers, utils, masks = (importlib.import_module(name) for name in ("src.utils.wrappers", "app.vjepa.utils", "src.masks.utils"))
        self.encoder = wrappers.MultiSeqWrapper(official_encoder(checkout, student.encoder, checkpointing))
        self.predictor = wrappers.PredictorMultiSeqWrapper(official_predictor(checkout, student.predictor, checkpointing))
        self.target = copy.deepcopy(self.encoder).requires_grad_(False)
        if compiled:
            for network in (self.encoder, self.target, self.predictor):
                network.compile()
        curve, epochs = phase.learning_rate, phase.steps // STEPS_AN_EPOCH + 1
        self.optimizer, self.scaler, self.rates, self.decays = utils.init_opt(
            is_anneal=False, encoder=self.encoder, predictor=self.predictor, wd=phase.weight_decay, final_wd=phase.weight_decay,
            start_lr=curve.start, ref_lr=curve.peak, final_lr=curve.final, iterations_per_epoch=STEPS_AN_EPOCH,
            warmup=curve.warmup_steps / STEPS_AN_EPOCH, num_epochs=epochs, mixed_precision=half, ipe_scale=1.0,
        )  # fmt: skip
        first, last = phase.ema
        steps = STEPS_AN_EPOCH * epochs
        self.momenta = (first + step * (last - first) / steps for step in range(steps + 1))
        self.half, self.apply_masks = half, masks.apply_masks

    def __call__(
        self, clips: list[Tensor], context_ids: list[list[Tensor]], target_ids: list[list[Tensor]], part: Part = lambda _: nullcontext()
    ) -> float:
        """One step on clips (B, C, T, H, W), normalised, and the masks of each; returns the loss."""
        self.rates.step()
        self.decays.step()
        with torch.autocast(clips[0].device.type, torch.bfloat16, enabled=self.half):
            with part("teacher"), torch.no_grad():
                wanted = [F.layer_norm(tokens, (tokens.size(-1),)) for tokens in self.target(clips)]
            with part("student and predictor"):
                predicted = self.predictor(self.encoder(clips, context_ids), context_ids, target_ids)
                chosen = [self.apply_masks(tokens, ids, concat=False) for tokens, ids in zip(wanted, target_ids, strict=True)]
                pairs = [pair for ours in zip(predicted, chosen, strict=True) for pair in zip(*ours, strict=True)]
                loss = sum(torch.mean(torch.abs(guess - target) ** 1.0) / 1.0 for guess, target in pairs) / len(pairs)
        with part("backward"):
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        with part("optimizer"):
            if self.scaler is None:
                self.optimizer.step()
            else:
                self.scaler.unscale_(self.optimizer)
                self.scaler.step(self.optimizer)
                self.scaler.update()
            self.optimizer.zero_grad()
        with part("average"), torch.no_grad():
            momentum = next(self.momenta)
            averages, weights = list(self.target.parameters()), list(self.encoder.parameters())
            torch._foreach_mul_(averages, momentum)
            torch._foreach_add_(averages, weights, alpha=1 - momentum)
        return loss.item()


def official_batches(checkout: Path, table: Path, phase: Phase, patch: int, tubelet: int, workers: int, part: Part) -> Iterator[Any]:
    """What their training loop gets of the videos in `table` (their csv: path and label), for ever: (clips, context ids, target
    ids) as their step takes them. `workers` processes make it ahead, 0: nobody does."""
    for needed in ("decord", "pandas"):
        if importlib.util.find_spec(needed) is None:
            raise SystemExit(f"Their dataset needs {needed}: pip install --no-deps --target FOLDER decord pandas, then PYTHONPATH=FOLDER.")
    import_official(checkout)
    # Their transforms name torchvision, but with the pretraining options nothing of it runs.
    stand_in("torchvision.transforms.functional")
    stand_in("torchvision.transforms", Compose=list)
    multiprocessing.set_start_method("fork", force=True)  # so that workers know the stand-ins; their program spawns them
    masking, transforms, data = (
        importlib.import_module(name) for name in ("src.masks.multiseq_multiblock3d", "app.vjepa.transforms", "src.datasets.data_manager")
    )
    logging.disable(logging.INFO)
    collator = masking.MaskCollator(
        cfgs_mask=[strategy.model_dump() for strategy in phase.masks], dataset_fpcs=[phase.frames], crop_size=phase.height, patch_size=patch,
        tubelet_size=tubelet,
    )  # fmt: skip
    draw = masking._MaskGenerator.__call__

    def timed_draw(generator: Any, size: int) -> Any:
        with part("masks"):
            return draw(generator, size)

    masking._MaskGenerator.__call__ = timed_draw
    transform = transforms.make_transforms(
        random_resize_aspect_ratio=phase.crop_aspect, random_resize_scale=phase.crop_scale, crop_size=phase.height
    )
    loader, sampler = data.init_data(
        data="VideoDataset", root_path=[str(table)], batch_size=phase.global_batch, training=True, dataset_fpcs=[phase.frames], fps=phase.fps,
        transform=transform, rank=0, world_size=1, datasets_weights=[1.0], persistent_workers=True, collator=collator, num_workers=workers,
        pin_mem=False,
    )  # fmt: skip
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        for sample in loader:
            yield tuple(zip(*((clips[0][0], context_ids, target_ids) for clips, context_ids, target_ids in sample), strict=True))
        epoch += 1
