"""A run of training steps: several GPUs, a time limit, a saved state, a log."""

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

SAVE_EVERY_S = 240
AGREE_EVERY = 20  # steps between the ranks' agreement on stopping
LOG_EVERY = 100


def stage_parser(description: str | None, *folders: str) -> argparse.ArgumentParser:
    """The command line that training stages share: their folders, `--config` and `--limit-s`."""
    parser = argparse.ArgumentParser(description=description)
    for name in folders:
        parser.add_argument(name, type=Path)
    parser.add_argument("--config", type=Path, default=DEFAULT)
    parser.add_argument(
        "--limit-s", type=float, default=math.inf, help="stop after, to go on later"
    )
    return parser


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; `device` is its own."""

    rank: int
    count: int
    device: torch.device

    @classmethod
    def join(cls) -> "Ranks":
        """From torchrun's environment; a process without it is alone, on a GPU if there is one."""
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
        """bf16 on a GPU; many a CPU takes seconds for a convolution in it."""
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
    """Steps of `weights` from where `folder/state.pt` stands, to `num_steps` or the time limit."""

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
        """Step numbers; randomness is seeded anew at each, so that a resumed run goes on alike."""
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
        """Add to the averages that are printed, and kept in log.jsonl, every LOG_EVERY steps."""
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            counter = f"{name}#"
            self._sums[counter] = self._sums.get(counter, torch.zeros_like(value)) + 1
        if self.weights.step_count % LOG_EVERY == 0:
            self._print()

    def save(self) -> None:
        """Write the state whole or not at all."""
        self._saved = time.monotonic()
        if self.ranks.first:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = self._state.with_suffix(".partial")
            torch.save(self.weights.state_dict(), partial)
            partial.replace(self._state)

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
    """From 1 at 0 to `floor` at 1."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))
