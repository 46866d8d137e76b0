"""The engines that move weights: DeepSpeed (ZeRO 0, 1, 2) and plain torch behind one small protocol.

This is the only file that imports deepspeed. The engine owns the process group, gradient reduction, clipping, precision
and the optimizer; the model, the target encoder, the schedules and the order of the data stay outside. State goes in
and out per parameter, so a run may go on with another number of ranks, another ZeRO stage, or without DeepSpeed.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelines.errors import InputError

logger = logging.getLogger("tubelet.engine")

BETAS = (0.9, 0.999)
EPS = 1e-8
BUCKET = 500_000_000  # elements reduced at once, DeepSpeed's default
PATIENCE = timedelta(minutes=30)  # the others wait in a collective while rank 0 reads or writes a checkpoint; a rank that died is seen by the launcher


@dataclass(frozen=True)
class EngineConfig:
    """`precision` bf16 computes under autocast while weights, gradients' sum and moments stay float32.

    `accumulation` is micro-batches a step.
    """

    zero_stage: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    accumulation: int = 1

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2):
            raise InputError(
                f"ZeRO stage {self.zero_stage} is not offered: it shards the weights, so that the target encoder's average would "
                "need every student weight gathered each step, and up to 2 B parameters stage 1 fits a GPU",
                expected="0, 1 or 2", found=str(self.zero_stage), remedy="set zero_stage: 1",
            )  # fmt: skip


@dataclass(frozen=True)
class EngineState:
    """All that an engine holds, on the CPU: `weights` by name; AdamW's `moments` as `<name>.exp_avg` and
    `<name>.exp_avg_sq` (there may be none before the first step); `steps` taken, which its bias correction needs."""

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    steps: int


class Engine(Protocol):
    """What a training loop needs.

    Networks outside the engine (the target) compute as the student does within `autocast`.
    `backward` and `step` are called for each of the `accumulation` micro-batches; the last `step` moves the weights, with gradients
    scaled down to a global norm of `clip` (None: no clipping, as upstream), and returns whether they moved: the step is refused on
    all ranks together when the gradient is not finite on any.
    `state` is called by all ranks and gives the state on rank 0, None elsewhere; `restore` takes it on every rank.
    """

    module: nn.Module
    rank: int
    world: int
    device: torch.device

    def __call__(self, *inputs: Any) -> Any: ...
    def autocast(self) -> torch.autocast: ...
    def backward(self, loss: Tensor) -> None: ...
    def step(self, learning_rate: float, weight_decay: float, clip: float | None = None) -> bool: ...
    def gradient_norm(self) -> float: ...
    def mean(self, values: Tensor) -> Tensor: ...
    def gather(self, values: Tensor) -> Tensor: ...
    def from_first(self, value: int) -> int: ...
    def barrier(self) -> None: ...
    def state(self) -> EngineState | None: ...
    def restore(self, state: EngineState) -> None: ...
    def close(self) -> None: ...


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """AdamW groups as upstream: weights with more than one axis decay, biases and norms do not (mask tokens do)."""
    decayed: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 and not name.endswith("bias") else rest).append(parameter)
    return [{"params": decayed, "decays": True}, {"params": rest, "decays": False, "weight_decay": 0.0}]


def make_optimizer(module: nn.Module) -> torch.optim.AdamW:
    """AdamW in its fused form, which CPU and CUDA both have; rate and decay are set at every step."""
    return torch.optim.AdamW(parameter_groups(module), lr=0.0, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, learning_rate: float, weight_decay: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        group["weight_decay"] = weight_decay if group["decays"] else 0.0


def low_precision(device: torch.device, config: EngineConfig) -> torch.autocast:
    """Where matrix products are computed in bfloat16 when the configuration says so; weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


def poisoned(loss: Tensor) -> Tensor:
    """The loss, or one whose every gradient is NaN when it is not finite: so that all ranks refuse the step, without a
    read-back (an infinite L1 alone can have finite gradients)."""
    bad = torch.full_like(loss.detach(), float("nan"))
    return loss * torch.where(torch.isfinite(loss.detach()), torch.ones_like(bad), bad)


class PlainEngine:
    """One process, plain torch: for unit tests, debugging and single-device training."""

    rank, world = 0, 1

    def __init__(self, module: nn.Module, config: EngineConfig, device: torch.device | None = None) -> None:
        self.config = config
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.module = module.to(self.device)
        self._optimizer = make_optimizer(self.module)
        self._parameters = [value for group in self._optimizer.param_groups for value in group["params"]]
        self._norm = float("nan")
        self._backwards = 0

    def __call__(self, *inputs: Any) -> Any:
        with self.autocast():
            return self.module(*inputs)

    def autocast(self) -> torch.autocast:
        return low_precision(self.device, self.config)

    def backward(self, loss: Tensor) -> None:
        (poisoned(loss) / self.config.accumulation).backward()
        self._backwards += 1

    def step(self, learning_rate: float, weight_decay: float, clip: float | None = None) -> bool:
        if self._backwards % self.config.accumulation:
            return True
        set_rates(self._optimizer, learning_rate, weight_decay)
        norm = torch.nn.utils.get_total_norm([value.grad for value in self._parameters if value.grad is not None])
        self._norm = float(norm)
        finite = math.isfinite(self._norm)
        if finite:
            if clip is not None:
                torch.nn.utils.clip_grads_with_norm_(self._parameters, clip, norm)
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return finite

    def gradient_norm(self) -> float:
        return self._norm

    def mean(self, values: Tensor) -> Tensor:
        return values

    def gather(self, values: Tensor) -> Tensor:
        return values

    def from_first(self, value: int) -> int:
        return value

    def barrier(self) -> None:
        return None

    def state(self) -> EngineState | None:
        return EngineState(on_cpu(self.module.state_dict()), *plain_moments(self.module, self._optimizer))

    def restore(self, state: EngineState) -> None:
        check_state(state, self.module)
        self.module.load_state_dict(state.weights, strict=True)
        set_plain_moments(self.module, self._optimizer, state)

    def close(self) -> None:
        return None


class DeepSpeedEngine:
    """DeepSpeed under our own AdamW. Needs RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT in the environment
    (the launcher, torchrun and the deepspeed command all set them)."""

    def __init__(self, module: nn.Module, config: EngineConfig) -> None:
        deepspeed = _import_deepspeed()
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False, timeout=PATIENCE)
        self.config = config
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        local = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        self._optimizer = make_optimizer(module)
        size = sum(value.numel() for value in module.parameters())
        settings: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": config.accumulation,
            "gradient_clipping": 0.0,  # its default is 1.0; a step's own limit is set in `step`
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
            # The whole bucket is allocated at once, so a small model must not ask for the default of 2 GB.
            "zero_optimization": {
                "stage": config.zero_stage, "overlap_comm": torch.cuda.is_available(),
                "reduce_bucket_size": min(BUCKET, size + 4096), "allgather_bucket_size": BUCKET,
            },
        }  # fmt: skip
        if config.precision == "bf16":
            # No module is marked for low-precision reduction: gradients are summed in float32.
            settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
        self._engine, *_ = deepspeed.initialize(model=module, optimizer=self._optimizer, config=settings, dist_init_required=False)
        self.module = self._engine.module
        self._zero = self._engine.optimizer if config.zero_stage else None
        self._parameters = [(name, value) for name, value in self.module.named_parameters() if value.requires_grad]
        self._norm = float("nan")
        if self._zero is not None:
            self._link_moments(0)

    def __call__(self, *inputs: Any) -> Any:
        return self._engine(*inputs)

    def autocast(self) -> torch.autocast:
        return low_precision(self.device, self.config)

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(poisoned(loss))

    def step(self, learning_rate: float, weight_decay: float, clip: float | None = None) -> bool:
        """In stages 1 and 2 the norm is one sum over all ranks, and DeepSpeed refuses the step on each when it is not finite; in
        stage 0 every rank holds the same reduced gradient."""
        set_rates(self._optimizer, learning_rate, weight_decay)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()
            return True
        if self._zero is not None:
            self._zero.clip_grad = clip or 0.0  # 0 is DeepSpeed's word for none
            self._engine.step()
            self._norm = float(self._engine.get_global_grad_norm())
            return not self._zero.overflow
        norm = torch.nn.utils.get_total_norm([value.grad for _, value in self._parameters if value.grad is not None])
        self._norm = float(norm)
        finite = math.isfinite(self._norm)
        if finite:
            if clip is not None:
                torch.nn.utils.clip_grads_with_norm_([value for _, value in self._parameters], clip, norm)
            self._engine.step()
        else:
            self._engine.zero_grad()
            self._engine.micro_steps += 1  # what its step would have done; the place in an accumulation hangs on it
        return finite

    def gradient_norm(self) -> float:
        return self._norm

    def mean(self, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values / self.world

    def gather(self, values: Tensor) -> Tensor:
        """Rows of all ranks in rank order; every rank gives the same shape."""
        parts = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def from_first(self, value: int) -> int:
        shared = torch.tensor(value, dtype=torch.int64, device=self.device)
        dist.broadcast(shared, src=0)
        return int(shared)

    def barrier(self) -> None:
        dist.barrier()

    def state(self) -> EngineState | None:
        moments, steps = self._moments()
        return EngineState(on_cpu(self.module.state_dict()), moments, steps) if self.rank == 0 else None

    def restore(self, state: EngineState) -> None:
        check_state(state, self.module)
        with torch.no_grad():
            for name, value in self.module.state_dict().items():
                value.copy_(state.weights[name])
        if self._zero is None:
            set_plain_moments(self.module, self._optimizer, state)
            return
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        for name, parameter in self._parameters:
            safe_set_full_fp32_param(parameter, state.weights[name].to(self.device))
        if not state.moments:
            return
        self._link_moments(state.steps)
        for name, parameter in self._parameters:
            for key in ("exp_avg", "exp_avg_sq"):
                safe_set_full_optimizer_state(parameter, state.moments[f"{name}.{key}"].to(self.device), key)

    def _moments(self) -> tuple[dict[str, Tensor], int]:
        """Moments gathered from the ranks' partitions; kept on rank 0 only."""
        if self._zero is None:
            return plain_moments(self.module, self._optimizer)
        from deepspeed.utils import safe_get_full_optimizer_state

        moments = {}
        for name, parameter in self._parameters:
            for key in ("exp_avg", "exp_avg_sq"):
                whole = safe_get_full_optimizer_state(parameter, key)
                if self.rank == 0:
                    moments[f"{name}.{key}"] = whole.cpu()
        return moments, int(next(iter(self._optimizer.state.values()))["step"])

    def _link_moments(self, steps: int) -> None:
        """Give every flat partition its moments and tell DeepSpeed where each parameter's part of them lies.

        Left alone it does this after the first group's first step, when the other groups have none yet, and never again
        (0.19.8): their moments could then not be read.
        """
        assert self._zero is not None
        for group in self._optimizer.param_groups:
            for flat in group["params"]:
                self._optimizer.state[flat] = {
                    "step": torch.tensor(float(steps), device=flat.device),
                    "exp_avg": torch.zeros_like(flat), "exp_avg_sq": torch.zeros_like(flat),
                }  # fmt: skip
        self._zero._hp_optimizer_states_linked = False
        self._zero._lazy_init_hp_params_optimizer_state()

    def close(self) -> None:
        """Leave the group together, so that no rank sees another vanish."""
        dist.barrier()
        dist.destroy_process_group()


def open_engine(module: nn.Module, config: EngineConfig) -> Engine:
    """DeepSpeed where a launcher has set the ranks' environment, else plain torch in this process."""
    return DeepSpeedEngine(module, config) if "WORLD_SIZE" in os.environ else PlainEngine(module, config)


def on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}


def check_state(state: EngineState, module: nn.Module) -> None:
    """Raise `InputError` when a state belongs to another network."""
    wanted = {name: value.shape for name, value in module.state_dict().items()}
    found = {name: value.shape for name, value in state.weights.items()}
    trained = {name for name, value in module.named_parameters() if value.requires_grad}
    keys = {f"{name}.{key}" for name in trained for key in ("exp_avg", "exp_avg_sq")} if state.moments else set()
    if wanted != found or keys != set(state.moments):
        odd = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name)) or sorted(keys ^ set(state.moments))
        raise InputError(
            "the training state is of another network", expected=f"{len(wanted)} weights and the moments of {len(trained)}",
            found=f"differences at {', '.join(odd[:4])}", remedy="start from a run of the same recipe, or without one",
        )  # fmt: skip


def plain_moments(module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], int]:
    """Moments of a torch optimizer by parameter name, and the number of steps it has taken."""
    steps = 0
    moments: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        state = optimizer.state.get(parameter)
        if state:
            steps = max(steps, int(state["step"]))
            moments |= on_cpu({f"{name}.{key}": state[key] for key in ("exp_avg", "exp_avg_sq")})
    return moments, steps


def set_plain_moments(module: nn.Module, optimizer: torch.optim.Optimizer, state: EngineState) -> None:
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and state.moments:
            optimizer.state[parameter] = {
                "step": torch.tensor(float(state.steps), device=parameter.device),
                **{key: state.moments[f"{name}.{key}"].to(parameter.device, copy=True) for key in ("exp_avg", "exp_avg_sq")},
            }


def _import_deepspeed() -> Any:
    """DeepSpeed, quiet, and on CPU without its shared-memory op: that would be compiled at start, for minutes, under a
    lock which a killed build leaves behind for ever (pytorch#189245). gloo does without it."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(None):
        import deepspeed
        import deepspeed.ops
        from deepspeed.utils import logging as deepspeed_logging

    deepspeed_logging.logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*_tensor` is deprecated", category=FutureWarning)  # DeepSpeed's calls, each step
    if not torch.cuda.is_available():
        compatible: Callable[..., Any] | dict[str, bool] | None = getattr(deepspeed.ops, "__compatible_ops__", None)
        if isinstance(compatible, dict) and "deepspeed_shm_comm" in compatible:
            compatible["deepspeed_shm_comm"] = False
        else:
            logger.warning("this DeepSpeed has no switch for its shared-memory op: the start may take minutes to compile it")
    _import_muon()
    return deepspeed


def _import_muon() -> None:
    """Import DeepSpeed's Muon with its kernels uncompiled. ZeRO 1 and 2 import it whatever the optimizer is, and its
    decorators load torch's compiler: 1 to 4 s of CPU on every rank for something that is never used."""
    from deepspeed.runtime import compiler

    compile_before = compiler.compile
    compiler.compile = lambda *_, **__: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    except ImportError:
        logger.info("this DeepSpeed has no Muon where it is looked for; nothing to avoid")
    finally:
        compiler.compile = compile_before
