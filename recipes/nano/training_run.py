"""Run training steps on several GPUs with a time limit, a saved state and a log."""

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, distributed

from recipes.nano.config import DEFAULT
from recipes.nano.master_weights import MasterWeights
from vidgen_ray.addresses import atomic_path

SAVE_EVERY_S = 240
AGREE_EVERY = 20  # steps between the ranks' agreement on stopping
LOG_EVERY = 100


def stage_parser(description: str | None, *folders: str) -> argparse.ArgumentParser:
    """The command line shared by the training stages: their folders, `--config` and `--limit-s`."""
    parser = argparse.ArgumentParser(description=description)
    for name in folders:
        parser.add_argument(name, type=Path)
    parser.add_argument("--config", type=Path, default=DEFAULT)
    parser.add_argument(
        "--limit-s", type=float, default=math.inf, help="stop after this time, to resume later"
    )
    return parser


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of a run; `device` is its own."""

    rank: int
    count: int
    device: torch.device

    @classmethod
    def join(cls) -> "Ranks":
        """Read torchrun's environment; a process without it is a single rank, on a GPU if there is
        one.
        """
        count, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        on_gpu = torch.cuda.is_available()
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_gpu else None
        if on_gpu:
            torch.cuda.set_device(device)
        if count > 1 and not distributed.is_initialized():
            distributed.init_process_group("nccl" if on_gpu else "gloo")
        return cls(rank, count, device or torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """bf16 on a GPU, else fp32: many CPUs are slow in bf16."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def first(self) -> bool:
        return self.rank == 0

    def agree(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank."""
        if self.count == 1:
            return flag
        votes = torch.tensor(float(flag), device=self.device)
        distributed.all_reduce(votes)
        return bool(votes.item())


@dataclass
class TrainingRun:
    """Steps of `weights` from `folder/state.pt`, if it exists, to `num_steps` or the time limit."""

    folder: Path
    weights: MasterWeights
    ranks: Ranks
    num_steps: int
    seed: int
    limit_s: float = math.inf
    _sums: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._started = self._saved = self._logged = time.monotonic()
        if self._state.exists():
            state = torch.load(self._state, map_location=self.ranks.device, weights_only=True)
            self.weights.load_state_dict(state)

    @property
    def _state(self) -> Path:
        return self.folder / "state.pt"

    @property
    def finished(self) -> bool:
        return self.weights.step_count >= self.num_steps

    def steps(self) -> Iterator[int]:
        """Step numbers; the random state is seeded at each, so that a resumed run is identical."""
        while not self.finished:
            step = self.weights.step_count
            if step % AGREE_EVERY == 0 and self.ranks.agree(self._time_is_up()):
                break
            torch.manual_seed((self.seed * 1_000_003 + step) * self.ranks.count + self.ranks.rank)
            yield step
            if time.monotonic() - self._saved > SAVE_EVERY_S:
                self.save()
        self.save()

    def log(self, **values: Tensor) -> None:
        """Accumulate values; their means are printed and appended to log.jsonl every LOG_EVERY
        steps.
        """
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            counter = f"{name}#"
            self._sums[counter] = self._sums.get(counter, torch.zeros_like(value)) + 1
        if self.weights.step_count % LOG_EVERY == 0:
            self._print()

    def save(self) -> None:
        """Write the state atomically."""
        self._saved = time.monotonic()
        if self.ranks.first:
            with atomic_path(self._state) as partial:
                torch.save(self.weights.state_dict(), partial)

    def _time_is_up(self) -> bool:
        return time.monotonic() - self._started > self.limit_s

    def _print(self) -> None:
        now = time.monotonic()
        means = {
            name: (total / self._sums[f"{name}#"]).item()
            for name, total in self._sums.items()
            if not name.endswith("#")
        }
        self._sums.clear()
        seconds, self._logged = now - self._logged, now
        line = {"step": self.weights.step_count, "s": round(now - self._started, 1), **means}
        if self.ranks.first:
            shown = " ".join(f"{name} {value:.4g}" for name, value in line.items())
            print(f"{shown} ({1000 * seconds / LOG_EVERY:.0f} ms a step)", flush=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")


def cosine(progress: float, floor: float = 0.02) -> float:
    """Cosine decay from 1 at progress 0 to `floor` at 1."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))
