"""The state of a run between two steps: written whole, found again after any kill."""

import io
import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from vidgen_ray.errors import ArtifactError

FOLDER = "state"

_NAME = re.compile(r"step-(\d{8})\.pt")


class Store(Protocol):
    """The output store, as far as it is needed here: every write is whole or not at all."""

    def write(self, name: str, data: bytes) -> None: ...
    def read(self, name: str) -> bytes | None: ...
    def names(self, folder: str) -> list[str]: ...
    def remove_file(self, name: str) -> None: ...


@dataclass(frozen=True)
class StepMetrics:
    """One optimiser step, counted from 1, over all workers. VRAM of the first, in 1e9 bytes."""

    step: int
    epoch: int
    loss: float
    learning_rate: float
    grad_norm: float
    step_s: float
    samples_per_s: float
    peak_vram_gb: float | None


@dataclass(frozen=True)
class State:
    """Everything that the next step depends on; what is drawn at random depends on its number.

    `weights` and `averages` are float32 by parameter name, `averages` None without an EMA.
    """

    num_steps: int
    weights: dict[str, Tensor]
    averages: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    history: list[StepMetrics]


def commit_state(store: Store, state: State, num_kept: int) -> None:
    """Write the state, then remove all but the `num_kept` latest."""
    buffer = io.BytesIO()
    content = {field.name: getattr(state, field.name) for field in fields(state)}
    torch.save({**content, "history": [asdict(row) for row in state.history]}, buffer)
    store.write(f"{FOLDER}/step-{state.num_steps:08d}.pt", buffer.getvalue())
    for name in committed_states(store)[:-num_kept]:
        store.remove_file(f"{FOLDER}/{name}")


def committed_states(store: Store) -> list[str]:
    """Names of the states that are there, the latest last."""
    return sorted(name for name in store.names(FOLDER) if _NAME.fullmatch(name))


def load_state(store: Store, name: str) -> State:
    """The state that `committed_states` named. Nothing in it is executed (`weights_only`)."""
    data = store.read(f"{FOLDER}/{name}")
    try:
        if data is None:
            raise FileNotFoundError(name)
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        history = [StepMetrics(**row) for row in content.pop("history")]
        return State(**content, history=history)
    except Exception as error:  # torch raises a dozen types for bad bytes
        raise ArtifactError(
            f"output: {FOLDER}/{name} cannot be read: {error}; remove it, and the run goes on from "
            "the state before it"
        ) from error
