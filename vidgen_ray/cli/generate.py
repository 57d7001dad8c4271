"""`vidgen generate`: one clip in this process, with what it took."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vidgen_ray.cli.options import ConfigOption, with_clip_options, with_generation_options
from vidgen_ray.config import load_config

if TYPE_CHECKING:  # numpy would slow down every `vidgen --help`
    from vidgen_ray.generation.clip_engine import OnStep
    from vidgen_ray.schema import GenerationRecord


@with_generation_options()
@with_clip_options
def generate(
    output: Annotated[
        Path, typer.Option(help="The clip, ending in .mp4; the record is written beside it.")
    ],
    fields: dict[str, Any],
    overrides: dict[str, Any],
    config: ConfigOption = "cogvideox_5b_i2v",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the clip.")] = False,
) -> None:
    """Generate one clip in this process, score it, and record it. It needs --image and a prompt.

    Exit codes: 0 accepted, 1 infrastructure, 2 bad input, 3 needs review.
    """
    tree = load_config(config, overrides)
    from vidgen_ray.generation.single import generate_clip
    from vidgen_ray.generation.templates import expand
    from vidgen_ray.model.device import require_gpu

    require_gpu(tree)
    console = Console(highlight=False, soft_wrap=True)
    fields = expand(fields, tree.prompt_templates)
    with _progress(console) as on_step:
        record = generate_clip(fields, output, tree, on_step, overwrite=overwrite)
    for line in _report(output, record):
        console.print(line, markup=False)
    raise typer.Exit(0 if record.status == "accepted" else 3)


@contextmanager
def _progress(console: Console) -> "Iterator[OnStep]":
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task("loading the model", total=None)

        def on_step(step: int, num_steps: int) -> None:
            stage = "denoising" if step < num_steps else "decoding and scoring"
            progress.update(task, description=stage, completed=step, total=num_steps)

        yield on_step


def _report(output: Path, record: "GenerationRecord") -> "Iterator[str]":
    """What a person wants to know of a clip: status, score, stage times and memory."""
    if record.model and not record.model.trained:
        yield "The weights are untrained: the picture shows the path, not the quality."
    score = f", temporal score {record.score.score:.2f}" if record.score else ""
    yield f"{output}: {record.status.replace('_', ' ')}{score}"
    for reason in record.reasons:
        yield f"  {reason}"
    stages = record.stages.model_dump(exclude_none=True)
    times = ", ".join(
        f"{name.removesuffix('_s').replace('_', ' ')} {seconds:.1f}"
        for name, seconds in stages.items()
    )
    attempts = f", attempt {record.attempt}" if len(record.attempts) > 1 else ""
    yield f"  {sum(stages.values()):.1f} s{attempts}: {times}"
    memory = "none, on a CPU" if record.peak_vram_gb is None else f"{record.peak_vram_gb:.1f} GB"
    yield f"  peak VRAM: {memory}"
