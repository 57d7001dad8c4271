"""`vidgen validate`: is an adapter good enough, on fixed prompts with fixed seeds?"""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from vidgen_ray.cli.options import (
    AddressOption,
    ConfigOption,
    LoraScaleOption,
    absolute,
    check_output,
    lora_address,
    ray_address,
    with_generation_options,
)
from vidgen_ray.config import LoRA, load_config


@with_generation_options("lora")
def validate(
    lora: Annotated[
        str,
        typer.Option(help="LoRA adapter: a folder, .safetensors, or the name of one that ships."),
    ],
    output: Annotated[str, typer.Option(help="Folder or fsspec address for the results.")],
    overrides: dict[str, Any],
    prompts: Annotated[
        str, typer.Option(help="Prompts file, or the name of one that ships.")
    ] = "validation_prompts",
    trigger: Annotated[
        str | None, typer.Option(help="The adapter's word, put before prompts that lack it.")
    ] = None,
    config: ConfigOption = "cogvideox_5b_i2v",
    lora_scale: LoraScaleOption = None,
    address: AddressOption = None,
) -> None:
    """Generate fixed prompts with and without an adapter, same seeds, and compare side by side.

    Passes if every clip with the adapter has a temporal score of quality.min_temporal_score or
    better and none gets worse than its counterpart. Exit codes: 0 pass, 1 infrastructure,
    2 bad input, 3 fail, 128 + n stopped by signal n.
    """
    tree = load_config(config, overrides)
    folder = check_output(output)
    from vidgen_ray.cluster.connect import native_log
    from vidgen_ray.validation.driver import ValidationArguments, run_validation
    from vidgen_ray.validation.prompts import find_prompts

    arguments = ValidationArguments(
        lora=LoRA(path=lora_address(lora), scale=1.0 if lora_scale is None else lora_scale),
        prompts=absolute(find_prompts(prompts)),
        output=folder,
        config=tree,
        config_name=Path(config).stem,
        trigger=trigger,
        ray_address=ray_address(address),
    )
    with native_log():
        exit_code = run_validation(arguments, Console())
    raise typer.Exit(exit_code)
