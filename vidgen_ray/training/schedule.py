"""Map a run's steps to clips and learning rates, independently of the number of workers."""

import math
from dataclasses import dataclass

import torch

from vidgen_ray.config import TrainingConfig


@dataclass(frozen=True)
class TrainingSchedule:
    """Steps of a run over `num_clips` clips. `global_batch` samples go into one step."""

    training: TrainingConfig
    num_clips: int
    num_workers: int

    @property
    def global_batch(self) -> int:
        """Samples a step, over all workers and accumulated batches."""
        training = self.training
        return training.batch_size * training.gradient_accumulation_steps * self.num_workers

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which each clip is seen once; the last is filled up with the first's clips."""
        return math.ceil(self.num_clips / self.global_batch)

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        steps = self.steps_per_epoch * self.training.num_epochs
        return min(steps, self.training.max_steps or steps)

    @property
    def num_epochs(self) -> int:
        """Epochs that are started."""
        return math.ceil(self.num_steps / self.steps_per_epoch)

    def epoch_of(self, step: int) -> int:
        """The epoch of a step, both counted from 0."""
        return step // self.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Whether a step is the last one of its epoch, or of the run."""
        return (step + 1) % self.steps_per_epoch == 0 or step + 1 == self.num_steps

    def clips_of(self, step: int) -> list[int]:
        """Indices of the clips of a step, one for each slot of the global batch.

        Each epoch has its own order, which depends only on the seed and the epoch.
        """
        epoch = self.epoch_of(step)
        generator = torch.Generator().manual_seed(self.training.seed * 1_000_003 + epoch)
        order = torch.randperm(self.num_clips, generator=generator).tolist()
        first = (step - epoch * self.steps_per_epoch) * self.global_batch
        return [order[slot % self.num_clips] for slot in range(first, first + self.global_batch)]

    def slots_of(self, rank: int, accumulated: int) -> range:
        """The slots of one worker in one of the accumulated batches.

        One worker that accumulates two batches sees the same slots as two workers that do not.
        """
        batch = self.training.batch_size
        first = (accumulated * self.num_workers + rank) * batch
        return range(first, first + batch)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then constant or cosine decay to zero."""
        training = self.training
        if step < training.warmup_steps:
            return training.learning_rate * (step + 1) / training.warmup_steps
        if training.schedule == "constant":
            return training.learning_rate
        decay_steps = self.num_steps - training.warmup_steps
        done = (step - training.warmup_steps) / max(1, decay_steps)
        return training.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
