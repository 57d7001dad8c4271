"""From clips to an adapter: `vidgen encode`, `vidgen train`."""

from typing import Annotated

import typer
from rich.console import Console

from vidgen_ray.cli.options import (
    AddressOption,
    ConfigOption,
    SetOption,
    absolute,
    check_output,
    ray_address,
)
from vidgen_ray.config import load_config, parse_overrides

_console = Console()


def encode(
    metadata: Annotated[str, typer.Argument(help="metadata.jsonl, a path or fsspec address.")],
    output: Annotated[str, typer.Option(help="Folder or fsspec address for the latents.")],
    config: ConfigOption = "cogvideox_5b_i2v",
    address: AddressOption = None,
    settings: SetOption = None,
) -> None:
    """Encode clips and prompts for training. The same command again encodes what is missing.

    Exit codes: 0 all encoded, 1 infrastructure, 2 bad input, 3 some clips were left out, 128 + n
    stopped by signal n.
    """
    tree = load_config(config, parse_overrides(settings or []))  # before imports that take seconds
    folder = check_output(output)
    from vidgen_ray.cluster.connect import native_log
    from vidgen_ray.encoding.driver import EncodingArguments, run_encoding

    arguments = EncodingArguments(
        metadata=absolute(metadata),
        output=folder,
        config=tree,
        ray_address=ray_address(address),
    )
    with native_log():
        raise typer.Exit(run_encoding(arguments, _console))


def train(
    latents: Annotated[str, typer.Option(help="Folder or address that `vidgen encode` wrote.")],
    output: Annotated[
        str, typer.Option(help="Folder or fsspec address for adapters, samples and metrics.")
    ] = "checkpoints/lora",
    config: ConfigOption = "training/lora_default",
    num_workers: Annotated[
        int, typer.Option(min=0, help="Ray Train workers, one a GPU; 0 trains in this process.")
    ] = 1,
    address: AddressOption = None,
    settings: SetOption = None,
) -> None:
    """Train a LoRA adapter. The same command again resumes from the last checkpoint.

    Exit codes: 0 trained, 1 infrastructure, 2 bad input or it cannot fit, 128 + n stopped by signal
    n after a checkpoint.
    """
    tree = load_config(config, parse_overrides(settings or []))
    folder = check_output(output)
    from vidgen_ray.cluster.connect import native_log
    from vidgen_ray.training.driver import run_training
    from vidgen_ray.training.run import TrainingArguments

    arguments = TrainingArguments(
        latents=absolute(latents),
        output=folder,
        config=tree,
        num_workers=num_workers,
        ray_address=ray_address(address),
    )
    with native_log():
        run_training(arguments, _console)
