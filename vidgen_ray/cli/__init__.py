"""`vidgen`: the commands a desk and its operators type."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vidgen_ray.cli import operations
from vidgen_ray.cli.benchmark import benchmark, calibrate
from vidgen_ray.cli.dataset import dataset_app
from vidgen_ray.cli.options import (
    ConfigOption,
    LoraOption,
    LoraScaleOption,
    ModeOption,
    OffloadOption,
    ProfileOption,
    SetOption,
    StepsOption,
    absolute,
    generation_overrides,
    is_temporary,
)
from vidgen_ray.cli.prompts import prompts
from vidgen_ray.cli.train import encode, train
from vidgen_ray.cli.validate import validate
from vidgen_ray.config import load_config, parse_overrides
from vidgen_ray.errors import ConfigError, DatasetError, Interrupted, RequestError, VidgenError
from vidgen_ray.image_io import Fit

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Image to video for newsrooms: one photo and one prompt become a 6-second clip.",
)

_console = Console()
_errors = Console(stderr=True)


@app.command()
def batch(
    jobs: Annotated[str, typer.Argument(help="Jobs file: JSONL, a JSON list or CSV.")],
    output: Annotated[str, typer.Option(help="Folder or fsspec address for the results.")],
    config: ConfigOption = "cogvideox_5b_i2v",
    mode: ModeOption = None,
    profile: ProfileOption = None,
    lora: LoraOption = None,
    lora_scale: LoraScaleOption = 1.0,
    num_inference_steps: StepsOption = None,
    offload: OffloadOption = None,
    on_invalid: Annotated[
        Literal["stop", "skip"],
        typer.Option(help="Rows with problems: stop before anything, or record them as failed."),
    ] = "stop",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try failed and quarantined ids again.")
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster (auto, host:port); default RAY_ADDRESS, else this machine."),
    ] = None,
    settings: SetOption = None,
) -> None:
    """Make every clip of a jobs file. The same command again goes on where it stopped.

    Exit codes: 0 all accepted, 1 infrastructure, 2 bad input, 3 some clips failed or need review,
    128 + n stopped by signal n.
    """
    overrides = generation_overrides(
        settings, mode, profile, lora, lora_scale, num_inference_steps, offload
    )
    tree = load_config(config, overrides)  # before the imports, which take seconds
    if is_temporary(output):
        raise RequestError(
            "output: must be an absolute path or a URL in a Ray job, whose working folder is "
            f"removed after it, got {output!r}"
        )
    from vidgen_ray.batch.driver import BatchArguments, run_batch
    from vidgen_ray.cluster.connect import native_log

    arguments = BatchArguments(
        jobs=absolute(jobs),
        output=absolute(output),
        config=tree,
        config_name=Path(config).stem,
        on_invalid=on_invalid,
        retry_failed=retry_failed,
        ray_address=address or os.environ.get("RAY_ADDRESS"),
    )
    with native_log():
        exit_code = run_batch(arguments, _console)
    raise typer.Exit(exit_code)


@app.command()
def generate(
    image: Annotated[str, typer.Option(help="Conditioning image: PNG, JPEG or WebP.")],
    prompt: Annotated[str, typer.Option(help="What happens in the clip.")],
    output: Annotated[Path, typer.Option(help="The clip, ending in .mp4; its record lies beside.")],
    config: ConfigOption = "cogvideox_5b_i2v",
    negative_prompt: Annotated[str | None, typer.Option(help="What should not happen.")] = None,
    seed: Annotated[int | None, typer.Option(help="Default: from the output's name.")] = None,
    mode: ModeOption = None,
    profile: ProfileOption = None,
    lora: LoraOption = None,
    lora_scale: LoraScaleOption = 1.0,
    num_inference_steps: StepsOption = None,
    offload: OffloadOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the clip.")] = False,
    settings: SetOption = None,
) -> None:
    """Make one clip in this process, score it, and record it.

    Exit codes: 0 accepted, 1 infrastructure, 2 bad input, 3 needs review.
    """
    overrides = generation_overrides(
        settings, mode, profile, lora, lora_scale, num_inference_steps, offload
    )
    tree = load_config(config, overrides)
    from vidgen_ray.generation.single import generate_clip

    fields = {"image": image, "prompt": prompt, "seed": seed, "negative_prompt": negative_prompt}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=_console, transient=True) as progress:
        task = progress.add_task("loading the model", total=None)

        def on_step(step: int, num_steps: int) -> None:
            what = "denoising" if step < num_steps else "decoding and scoring"
            progress.update(task, description=what, completed=step, total=num_steps)

        record = generate_clip(
            {name: value for name, value in fields.items() if value is not None},
            output,
            tree,
            on_step,
            overwrite=overwrite,
        )
    if record.model and not record.model.trained:
        _console.print("The weights are untrained: the picture shows the path, not the quality.")
    measured = f", score {record.score.score:.2f}" if record.score else ""
    _console.print(f"{output}: {record.status.replace('_', ' ')}{measured}", soft_wrap=True)
    for reason in record.reasons:
        _console.print(f"  {reason}", soft_wrap=True)
    raise typer.Exit(0 if record.status == "accepted" else 3)


@app.command()
def score(
    videos: Annotated[list[str], typer.Argument(help="Video files or fsspec addresses.")],
    config: ConfigOption = "nano",
    max_frames: Annotated[int | None, typer.Option(help="Score this many frames at most.")] = None,
    image: Annotated[
        str | None, typer.Option(help="The photo that every clip begins with, to compare.")
    ] = None,
    image_fit: Annotated[Fit, typer.Option(help="How the photo was made to fit.")] = "crop",
) -> None:
    """Print temporal scores and verdicts as JSON, one object a line.

    Exit codes: 0 all accepted, 2 a file cannot be read, 3 some were not accepted.
    """
    quality = load_config(config).quality
    from vidgen_ray.generation.scoring import score_video
    from vidgen_ray.generation.verdict import judge
    from vidgen_ray.image_io import read_image
    from vidgen_ray.video_io import read_video

    exit_code = 0
    for name in videos:
        try:
            video = read_video(name, max_frames=max_frames)
            photo = None
            if image is not None:
                height, width = video.frames.shape[1:3]
                photo = read_image(image, height=height, width=width, fit=image_fit).pixels
            measured = score_video(video, os.cpu_count() or 1, photo)
        except VidgenError as error:
            _errors.print(f"{name}: {error}", highlight=False, markup=False, soft_wrap=True)
            exit_code = 2
            continue
        verdict, reasons = judge(measured, quality)
        accepted = verdict == "accepted"
        line = {
            "video": name,
            "verdict": verdict,
            "reasons": reasons,
            **measured.model_dump(),
        }
        print(json.dumps(line), flush=True)
        exit_code = exit_code or (0 if accepted else 3)
    raise typer.Exit(exit_code)


@app.command()
def doctor(
    config: ConfigOption = "cogvideox_5b_i2v",
    load: Annotated[bool, typer.Option(help="Load the model in its dtype.")] = True,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Look at every node of a Ray cluster instead.")
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="The cluster; default RAY_ADDRESS, else auto.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Storage that every node of the cluster must write.")
    ] = None,
    settings: SetOption = None,
) -> None:
    """Say whether this machine, or each node of a cluster, can make a clip, and what is missing.

    Exit codes: 0 it can, 1 it cannot, 2 bad configuration.
    """
    tree = load_config(config, parse_overrides(settings or []))
    if cluster:
        healthy = operations.examine_cluster(tree, address, output)
        raise typer.Exit(0 if healthy else 1)
    from vidgen_ray.operations.doctor import examine

    marks = {True: "ok", False: "MISSING", None: "note"}
    healthy = True
    for check in examine(tree, load=load):
        healthy = healthy and check.ok is not False
        line = f"{marks[check.ok]:8}{check.name:12}{check.finding}"
        _console.print(line, highlight=False, markup=False, soft_wrap=True)
    verdict = "this machine can make clips" if healthy else "this machine cannot make clips yet"
    _console.print(f"{verdict} with {config}", highlight=False, markup=False)
    raise typer.Exit(0 if healthy else 1)


operations.register(app)


@app.command()
def key(
    owner: Annotated[str, typer.Argument(help="Whose key it is: a desk, a tool, a person.")],
) -> None:
    """Make an API key for the server: `vidgen key desk >> keys.yaml`.

    The key itself is shown once, on the terminal; the file gets its hash alone.
    """
    from vidgen_ray.serving.http.keys import new_key

    secret, digest = new_key()
    _errors.print(f"{secret}  (of {owner}; shown this once)", highlight=False, soft_wrap=True)
    print(f"{owner}: {digest}")


app.command()(benchmark)
app.command()(calibrate)
app.add_typer(dataset_app, name="dataset")
app.command()(encode)
app.command()(train)
app.command()(validate)
app.command()(prompts)


def main() -> None:
    """Run the command line; errors become one line and an exit code."""
    run_and_exit(app)


def run_and_exit(command: typer.Typer) -> None:
    """Run a typer app as `vidgen` does. Bad input exits 2, other errors 1, a signal 128 + n."""
    try:
        command()
    except VidgenError as error:
        _errors.print(f"error: {error}", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, RequestError | ConfigError | DatasetError) else 1)
    except Interrupted as stop:
        _errors.print("stopped; run the same command again to go on", highlight=False)
        sys.exit(128 + stop.signal_number)
