"""Commit and load the state of a run between two steps."""

import io
import re
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from vidgen_ray.errors import ArtifactError
from vidgen_ray.generation.artifacts import ArtifactStore

FOLDER = "state"

_NAME = re.compile(r"step-(\d{8})\.pt")


@dataclass(frozen=True)
class StepMetrics:
    """One optimizer step, counted from 1, over all workers; peak allocated VRAM of the first."""

    step: int
    epoch: int
    loss: float
    learning_rate: float
    grad_norm: float
    step_s: float
    samples_per_s: float
    peak_vram_gb: float | None


@dataclass(frozen=True)
class TrainingState:
    """Everything that the next step depends on; random draws depend only on its number.

    `weights` and `averages` are float32 by parameter name; `averages` (EMA) may be None.
    """

    num_steps: int
    weights: dict[str, Tensor]
    averages: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    history: list[StepMetrics]


def commit_state(store: ArtifactStore, state: TrainingState, num_kept: int) -> None:
    """Write the state, then remove all but the `num_kept` latest."""
    buffer = io.BytesIO()
    content = {field.name: getattr(state, field.name) for field in fields(state)}
    torch.save({**content, "history": [asdict(row) for row in state.history]}, buffer)
    store.write(f"{FOLDER}/step-{state.num_steps:08d}.pt", buffer.getvalue())
    for name in committed_states(store)[:-num_kept]:
        store.remove_file(f"{FOLDER}/{name}")


def num_committed_steps(store: ArtifactStore) -> int:
    """Steps of the latest committed state, 0 if there is none."""
    names = committed_states(store)
    return int(names[-1][len("step-") : -len(".pt")]) if names else 0


def committed_states(store: ArtifactStore) -> list[str]:
    """Names of the committed states, the latest last."""
    return sorted(name for name in store.names(FOLDER) if _NAME.fullmatch(name))


def load_state(store: ArtifactStore, name: str) -> TrainingState:
    """Load a state by its name from `committed_states`, without executing code from it."""
    data = store.read(f"{FOLDER}/{name}")
    try:
        if data is None:
            raise FileNotFoundError(name)
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        history = [StepMetrics(**row) for row in content.pop("history")]
        return TrainingState(**content, history=history)
    except Exception as error:  # torch raises a dozen types for bad bytes
        raise ArtifactError(
            f"output: {FOLDER}/{name} cannot be read: {error}; remove it to resume from the "
            "state before it"
        ) from error
