"""What the commands share: options, and paths as workers will find them."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vidgen_ray.config import parse_overrides, shipped_loras

ConfigOption = Annotated[
    str, typer.Option(help="Name of a shipped configuration (nano, ...) or a .yaml file.")
]
ModeOption = Annotated[
    Literal["baseline", "optimized"] | None, typer.Option(help="Plain diffusers, or a profile.")
]
ProfileOption = Annotated[str | None, typer.Option(help="Profile of --mode optimized.")]
LoraOption = Annotated[
    str | None,
    typer.Option(help="LoRA adapter: a folder, .safetensors, or the name of one that ships."),
]
LoraScaleOption = Annotated[float, typer.Option(help="Weight of --lora.")]
StepsOption = Annotated[int | None, typer.Option(help="Denoising steps; 28 is quicker than 50.")]
OffloadOption = Annotated[
    Literal["auto", "none", "text", "model", "sequential", "group"] | None,
    typer.Option(help="Keep weights in main memory; auto goes by the free VRAM."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other setting: section.key=value, repeatable."),
]


def generation_overrides(
    settings: list[str] | None,
    mode: str | None,
    profile: str | None,
    lora: str | None,
    lora_scale: float,
    num_inference_steps: int | None,
    offload: str | None,
) -> dict[str, Any]:
    """The settings that the options of a clip stand for, above those of the configuration."""
    named = {
        "generation.mode": mode,
        "generation.profile": profile,
        "generation.lora": {"path": lora_address(lora), "scale": lora_scale} if lora else None,
        "generation.num_inference_steps": num_inference_steps,
        "model.offload": offload,
    }
    set_ = {name: value for name, value in named.items() if value is not None}
    return {**parse_overrides(settings or []), **set_}


def is_temporary(address: str) -> bool:
    """Whether a path is relative to the folder that Ray unpacks for a job."""
    relative = "://" not in address and not os.path.isabs(os.path.expanduser(address))
    return relative and "runtime_resources" in Path.cwd().parts


def absolute(address: str) -> str:
    """A local path from here, so that workers with another folder find it; URLs as they are."""
    return address if "://" in address else os.path.abspath(os.path.expanduser(address))


def lora_address(lora: str) -> str:
    """An adapter as workers will find it: the name of one that ships, else as `absolute`."""
    return lora if lora in shipped_loras() else absolute(lora)
