"""`vidgen batch`: every clip of a jobs file, on this machine or a cluster."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from vidgen_ray.cli.options import (
    AddressOption,
    ConfigOption,
    absolute,
    check_output,
    ray_address,
    with_generation_options,
)
from vidgen_ray.config import load_config


@with_generation_options()
def batch(
    jobs: Annotated[str, typer.Argument(help="Jobs file: JSONL, a JSON list or CSV.")],
    output: Annotated[str, typer.Option(help="Folder or fsspec address for the results.")],
    overrides: dict[str, Any],
    config: ConfigOption = "cogvideox_5b_i2v",
    on_invalid: Annotated[
        Literal["stop", "skip"],
        typer.Option(help="Rows with problems: stop before anything, or record them as failed."),
    ] = "stop",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try failed and quarantined ids again.")
    ] = False,
    address: AddressOption = None,
) -> None:
    """Generate every clip of a jobs file. The same command again resumes.

    Exit codes: 0 all accepted, 1 infrastructure, 2 bad input, 3 some clips failed or need review,
    128 + n stopped by signal n.
    """
    tree = load_config(config, overrides)  # before the imports, which take seconds
    folder = check_output(output)
    from vidgen_ray.batch.driver import BatchArguments, run_batch
    from vidgen_ray.cluster.connect import native_log

    arguments = BatchArguments(
        jobs=absolute(jobs),
        output=folder,
        config=tree,
        config_name=Path(config).stem,
        on_invalid=on_invalid,
        retry_failed=retry_failed,
        ray_address=ray_address(address),
    )
    with native_log():
        exit_code = run_batch(arguments, Console())
    raise typer.Exit(exit_code)
