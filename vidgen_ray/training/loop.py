"""The training loop of one rank, in this process or as one of many workers."""

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from vidgen_ray.config import TrainingConfig
from vidgen_ray.encoding.shards import EncodedClips
from vidgen_ray.errors import ConfigError, EngineError
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.model.device import peak_vram_gb, reset_peak_vram
from vidgen_ray.model.lora import LoraTransformer
from vidgen_ray.training.loss import velocity_loss
from vidgen_ray.training.samples import Sample, SampleBuilder, stack
from vidgen_ray.training.schedule import TrainingSchedule
from vidgen_ray.training.state import (
    StepMetrics,
    TrainingState,
    commit_state,
    committed_states,
    load_state,
)

# Called after each step on every rank; the first rank's answer decides whether to continue.
OnStep = Callable[[StepMetrics], bool]
# Called on every rank at the end of an epoch, counted from 0, with the EMA weights in place.
OnEpoch = Callable[[int], None]


@dataclass
class Trainer:
    """A run on one rank. `module` is `model`, wrapped in DDP if there are several workers.

    `history` holds every step that led to the current weights, from the run's first one.
    """

    model: LoraTransformer
    module: nn.Module
    clips: EncodedClips
    samples: SampleBuilder
    schedule: TrainingSchedule
    store: ArtifactStore
    rank: int
    device: torch.device
    history: list[StepMetrics] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._weights = self.model.adapter_weights()
        self._optimizer = make_optimizer(list(self._weights.values()), self.schedule.training)
        self._averages: dict[str, Tensor] | None = None
        if self.schedule.training.ema_decay is not None:
            self._averages = {name: w.detach().clone() for name, w in self._weights.items()}

    def run(self, on_step: OnStep, on_epoch: OnEpoch) -> bool:
        """Train from the end of `history` on; returns whether the run's end was reached.

        Raises EngineError for a loss or gradient that is not finite.
        """
        first = len(self.history)
        if first and self.schedule.ends_epoch(first - 1):
            self._end_epoch(first - 1, on_epoch)  # the run may have been killed during it
        batches = self._batches(first)
        for step in range(first, self.schedule.num_steps):
            metrics = self._step(step, batches)
            self.history.append(metrics)
            stop = self._agreed(not on_step(metrics))
            ends_epoch = self.schedule.ends_epoch(step)
            if (
                stop
                or ends_epoch
                or (step + 1) % self.schedule.training.checkpoint_every_steps == 0
            ):
                self._commit(step + 1)
            if ends_epoch and not stop:
                self._end_epoch(step, on_epoch)
            if stop:
                return False
        return True

    def _step(self, step: int, batches: Iterator[Sample]) -> StepMetrics:
        """One optimizer step over the accumulated batches. Raises EngineError."""
        start = time.perf_counter()
        reset_peak_vram(self.device)
        learning_rate = self.schedule.learning_rate(step)
        self._set_learning_rate(learning_rate)
        total = self._accumulate(batches)
        max_norm = self.schedule.training.max_grad_norm
        grad_norm = float(nn.utils.clip_grad_norm_(self._weights.values(), max_norm))
        mean_loss = self._mean(total)
        if not math.isfinite(mean_loss) or not math.isfinite(grad_norm):
            raise EngineError(
                f"step {step + 1}: the loss is {mean_loss}, the gradient norm {grad_norm}; lower "
                f"training.learning_rate ({self.schedule.training.learning_rate:g}) or look for a "
                "damaged clip; the same command resumes from the last checkpoint"
            )
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._average()
        seconds = time.perf_counter() - start
        return StepMetrics(
            step=step + 1,
            epoch=self.schedule.epoch_of(step) + 1,
            loss=mean_loss,
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            step_s=seconds,
            samples_per_s=self.schedule.global_batch / seconds,
            peak_vram_gb=peak_vram_gb(self.device),
        )

    def _set_learning_rate(self, learning_rate: float) -> None:
        for group in self._optimizer.param_groups:
            if isinstance(group["lr"], Tensor):  # in the 8-bit optimizer
                group["lr"].fill_(learning_rate)
            else:
                group["lr"] = learning_rate

    def _accumulate(self, batches: Iterator[Sample]) -> Tensor:
        """Add up the gradients of a step's batches; returns their mean loss, a scalar."""
        num_batches = self.schedule.training.gradient_accumulation_steps
        total = torch.zeros((), device=self.device)
        for number in range(num_batches):
            with self._without_sync(number < num_batches - 1):
                loss = velocity_loss(self.module, next(batches), self.model.alphas_cumprod)
                loss = loss / num_batches
                loss.backward()
            total += loss.detach()
        return total

    def _batches(self, first: int) -> Iterator[Sample]:
        """This rank's batches from step `first` on; the next is prepared while one is used."""
        accumulated = range(self.schedule.training.gradient_accumulation_steps)
        places = ((s, k) for s in range(first, self.schedule.num_steps) for k in accumulated)
        with ThreadPoolExecutor(1) as pool:
            pending = None
            for step, k in places:
                upcoming = pool.submit(self._read, step, k)
                if pending is not None:
                    yield stack(pending.result(), self.device)
                pending = upcoming
            if pending is not None:
                yield stack(pending.result(), self.device)

    def _read(self, step: int, accumulated: int) -> list[Sample]:
        indices = self.schedule.clips_of(step)
        return [
            self.samples.build(
                self.clips.read(indices[slot]), step, slot, self.schedule.global_batch
            )
            for slot in self.schedule.slots_of(self.rank, accumulated)
        ]

    def _average(self) -> None:
        if self._averages is not None:
            decay = self.schedule.training.ema_decay
            assert decay is not None
            with torch.no_grad():
                for name, weight in self._weights.items():
                    self._averages[name].lerp_(weight, 1 - decay)

    def _end_epoch(self, step: int, on_epoch: OnEpoch) -> None:
        """Call back with the EMA in place of the weights, if there is one."""
        own = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._set_weights(self._averages or own)
        try:
            on_epoch(self.schedule.epoch_of(step))
        finally:
            self._set_weights(own)
        if dist.is_initialized():
            dist.barrier()

    def _set_weights(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(weights[name])

    def _commit(self, num_steps: int) -> None:
        if self.rank == 0:
            weights = {name: weight.detach() for name, weight in self._weights.items()}
            optimizer = self._optimizer.state_dict()
            state = TrainingState(num_steps, weights, self._averages, optimizer, self.history)
            commit_state(self.store, state, self.schedule.training.num_checkpoints_kept)
        if dist.is_initialized():
            dist.barrier()

    def resume(self) -> None:
        """Load the last committed state, if there is one; the first rank chooses it."""
        names: list[str | None] = [None]
        if self.rank == 0:
            names = [*committed_states(self.store)[-1:], None][:1]
        if dist.is_initialized():
            dist.broadcast_object_list(names)
        if names[0] is None:
            return
        state = load_state(self.store, names[0])
        self._set_weights(state.weights)
        if state.averages is not None:
            self._averages = {name: w.to(self.device) for name, w in state.averages.items()}
        self._optimizer.load_state_dict(state.optimizer)
        self.history = state.history

    def _without_sync(self, skip: bool) -> AbstractContextManager[None]:
        if skip and isinstance(self.module, DistributedDataParallel):
            return self.module.no_sync()
        return nullcontext()

    def _mean(self, value: Tensor) -> float:
        if dist.is_initialized():
            dist.all_reduce(value)
            value = value / dist.get_world_size()
        return float(value)

    def _agreed(self, flag: bool) -> bool:
        if not dist.is_initialized():
            return flag
        answer = torch.tensor(int(flag), device=self.device)
        dist.broadcast(answer, 0)
        return bool(answer)


def make_optimizer(weights: list[nn.Parameter], training: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW, or torchao's with 8-bit moments. Raises ConfigError if torchao is missing."""
    options: dict[str, Any] = {
        "lr": training.learning_rate,
        "betas": training.adam_betas,
        "weight_decay": training.weight_decay,
    }
    if training.optimizer == "adamw":
        return torch.optim.AdamW(weights, **options)
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError(
            f"training.optimizer: adamw8bit needs torchao: {error}; pip install torchao, or use "
            "adamw"
        ) from None
    optimizer: torch.optim.Optimizer = AdamW8bit(weights, **options)
    return optimizer
