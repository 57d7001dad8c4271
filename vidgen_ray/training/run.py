"""The arguments of a training run, from the user to the ranks."""

from dataclasses import dataclass
from typing import Any

from vidgen_ray.config import Config


@dataclass(frozen=True)
class TrainingArguments:
    """What the user asked for. Addresses are local paths or fsspec addresses."""

    latents: str
    output: str
    config: Config
    num_workers: int = 1
    ray_address: str | None = None


@dataclass(frozen=True)
class RankArguments:
    """What a rank needs to know; `channel` is a TrainingChannel or the handle of its actor."""

    latents: str
    output: str
    config: Config
    channel: Any
