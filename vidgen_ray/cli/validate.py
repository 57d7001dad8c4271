"""`vidgen validate`: is an adapter good enough, on fixed prompts with fixed seeds?"""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vidgen_ray.cli.options import (
    ConfigOption,
    LoraScaleOption,
    ModeOption,
    OffloadOption,
    ProfileOption,
    SetOption,
    StepsOption,
    absolute,
    generation_overrides,
    is_temporary,
    lora_address,
)
from vidgen_ray.config import LoRA, load_config
from vidgen_ray.errors import RequestError


def validate(
    lora: Annotated[
        str,
        typer.Option(help="LoRA adapter: a folder, .safetensors, or the name of one that ships."),
    ],
    output: Annotated[str, typer.Option(help="Folder or fsspec address for the results.")],
    prompts: Annotated[
        str, typer.Option(help="Prompts file, or the name of one that ships.")
    ] = "validation_prompts",
    trigger: Annotated[
        str | None, typer.Option(help="The adapter's word, put before prompts that lack it.")
    ] = None,
    config: ConfigOption = "cogvideox_5b_i2v",
    lora_scale: LoraScaleOption = 1.0,
    mode: ModeOption = None,
    profile: ProfileOption = None,
    num_inference_steps: StepsOption = None,
    offload: OffloadOption = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster (auto, host:port); default RAY_ADDRESS, else this machine."),
    ] = None,
    settings: SetOption = None,
) -> None:
    """Make fixed prompts with and without an adapter, same seeds, and compare side by side.

    Passes if every clip with the adapter has a temporal score of quality.min_temporal_score or
    better and none gets worse than its counterpart. Exit codes: 0 pass, 1 infrastructure,
    2 bad input, 3 fail, 128 + n stopped by signal n.
    """
    overrides = generation_overrides(
        settings, mode, profile, None, 1.0, num_inference_steps, offload
    )
    tree = load_config(config, overrides)
    if is_temporary(output):
        raise RequestError(
            "output: must be an absolute path or a URL in a Ray job, whose working folder is "
            f"removed after it, got {output!r}"
        )
    from vidgen_ray.cluster.connect import native_log
    from vidgen_ray.validation.driver import ValidationArguments, run_validation
    from vidgen_ray.validation.prompts import find_prompts

    arguments = ValidationArguments(
        lora=LoRA(path=lora_address(lora), scale=lora_scale),
        prompts=absolute(find_prompts(prompts)),
        output=absolute(output),
        config=tree,
        config_name=Path(config).stem,
        trigger=trigger,
        ray_address=address or os.environ.get("RAY_ADDRESS"),
    )
    with native_log():
        exit_code = run_validation(arguments, Console())
    raise typer.Exit(exit_code)
