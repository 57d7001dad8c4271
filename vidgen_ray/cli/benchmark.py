"""`vidgen benchmark` and `vidgen calibrate`: how fast, how good, and which settings are both."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from vidgen_ray.cli.options import ConfigOption, SetOption, with_generation_options
from vidgen_ray.config import Config, describe, load_config, parse_overrides
from vidgen_ray.errors import ArtifactError, ConfigError, RequestError

if TYPE_CHECKING:  # numpy and torch would slow down every `vidgen --help`
    from vidgen_ray.generation.clip_engine import Generation
    from vidgen_ray.schema import BenchmarkReport, GenerationRequest, ProjectSummary

_console = Console()


@with_generation_options("mode", "profile", "lora")
def benchmark(
    image: Annotated[str, typer.Option(help="Conditioning image: PNG, JPEG or WebP.")],
    prompt: Annotated[str, typer.Option(help="What happens in the clip.")],
    overrides: dict[str, Any],
    config: ConfigOption = "cogvideox_5b_i2v",
    mode: Annotated[
        Literal["baseline", "optimized", "both"],
        typer.Option(help="A plain diffusers call, the profiles, or both with their ratio."),
    ] = "both",
    profile: Annotated[
        list[str] | None,
        typer.Option(help="A profile to measure, repeatable; default: all of the configuration."),
    ] = None,
    alternative: Annotated[
        list[str] | None,
        typer.Option(help="Another diffusers video pipeline, folder or hub id; repeatable."),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Clips of each, after one to warm up.")] = 3,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    csv: Annotated[
        Path, typer.Option(help="The table; plot, page and clips lie beside it.")
    ] = Path("outputs/benchmarks.csv"),
    summary: Annotated[
        Path, typer.Option(help="The project's summary, which gets this run's snapshot.")
    ] = Path("PROJECT_SUMMARY.json"),
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Weights drawn on the device: no hub needed.")
    ] = False,
    architecture: Annotated[
        str, typer.Option(help="Of --random-weights: cogvideox_5b_i2v or tiny.")
    ] = "cogvideox_5b_i2v",
) -> None:
    """Measure the profiles beside a plain diffusers call: time, memory, FLOPs, and what changes.

    Exit codes: 0 all measured, 1 infrastructure, 2 bad input, 3 some could not be measured.
    """
    if csv.suffix != ".csv":
        raise RequestError(f"csv: must end in .csv, got {csv}")
    known = _read_summary(summary)
    with tempfile.TemporaryDirectory(prefix="vidgen-") as folder:
        if random_weights:
            overrides |= _without_hub(architecture, Path(folder))
        tree = load_config(config, overrides)
        from vidgen_ray.benchmark.runner import run_benchmark

        fields = {"id": "benchmark", "image": image, "prompt": prompt, "seed": seed}
        names = [] if mode == "baseline" else profile or sorted(tree.profiles)
        report, clips = run_benchmark(
            tree,
            f"{config}, {architecture} with random weights" if random_weights else config,
            _resolve(fields, tree),
            profiles=names,
            baseline=mode != "optimized",
            alternatives=alternative or [],
            repeat=repeat,
            log=lambda line: _console.print(line, style="dim", highlight=False, markup=False),
        )
    report = _write(csv, summary, known, report, clips)
    _console.print(_as_table(report))
    for path in (csv, csv.with_suffix(".html"), summary):
        _console.print(str(path), highlight=False, markup=False)
    raise typer.Exit(3 if any(row.error for row in report.rows) else 0)


def calibrate(
    jobs: Annotated[str, typer.Argument(help="Jobs file: the clips to compare, a few are enough.")],
    config: ConfigOption = "cogvideox_5b_i2v",
    profile: Annotated[str, typer.Option(help="The profile to build on and to print.")] = "fast",
    steps: Annotated[str, typer.Option(help="Numbers of steps to try.")] = "50,40,34,28",
    thresholds: Annotated[
        str, typer.Option(help="Thresholds of the step cache to try; 0 is without.")
    ] = "0,0.05,0.1,0.15,0.2",
    min_psnr: Annotated[
        float, typer.Option(help="The worst clip against its baseline, dB.")
    ] = 30.0,
    output: Annotated[
        Path | None, typer.Option(help="Write the profile here, for a configuration file.")
    ] = None,
    settings: SetOption = None,
) -> None:
    """Choose steps and step cache: the quickest whose clips stay near the baseline's, same verdict.

    Exit codes: 0 chosen, 1 infrastructure, 2 bad input, 3 no candidate passes.
    """
    tree = load_config(config, parse_overrides(settings or []))
    if profile not in tree.profiles:
        raise RequestError(f"profile: must be one of {sorted(tree.profiles)}, got {profile!r}")
    numbers = [int(number) for number in _numbers("steps", steps) if number >= 1]
    from vidgen_ray.benchmark.calibration import as_profile, calibrate, choose
    from vidgen_ray.generation.jobs_file import read_jobs

    file = read_jobs(jobs, tree)
    if file.problems:
        raise RequestError("; ".join(map(str, file.problems[:5])))
    base = tree.profiles[profile]
    trials = calibrate(
        tree,
        [job.request for job in file.requests],
        profile=base,
        steps=numbers,
        thresholds=[threshold or None for threshold in _numbers("thresholds", thresholds)],
        min_psnr_db=min_psnr,
        log=lambda line: _console.print(line, highlight=False, markup=False),
    )
    chosen = choose(trials, min_psnr)
    if chosen is None:
        _console.print(f"no candidate keeps {min_psnr:g} dB and the verdict; try more steps")
        raise typer.Exit(3)
    text = as_profile(profile, base, chosen)
    if output:
        output.write_text(text)
    _console.print(text.rstrip(), highlight=False, markup=False)


def _write(
    csv: Path,
    summary: Path,
    known: "ProjectSummary | None",
    report: "BenchmarkReport",
    clips: "dict[str, Generation]",
) -> "BenchmarkReport":
    """Write table, plot, page, clips and the summary; the report with their names."""
    from vidgen_ray.addresses import atomic_path
    from vidgen_ray.benchmark import page as benchmark_page
    from vidgen_ray.video_io import write_video

    plot, page = csv.with_suffix(".png"), csv.with_suffix(".html")
    try:
        csv.parent.mkdir(parents=True, exist_ok=True)
        videos = [csv.with_name(f"{csv.stem}-{_file_name(name)}.mp4") for name in clips]
        for path, clip in zip(videos, clips.values(), strict=True):
            write_video(path, clip.video)
        artifacts = [path.as_posix() for path in (csv, plot, page, *videos)]
        report = report.model_copy(update={"artifacts": artifacts})
        csv.write_text(benchmark_page.table(report))
        plot.write_bytes(benchmark_page.plot(report))
        page.write_text(benchmark_page.page(report, plot.name, csv.name))
        merged = benchmark_page.summarized(known, csv.stem, report)
        with atomic_path(summary) as partial:
            partial.write_text(merged.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise ArtifactError(f"csv: {csv.parent} cannot be written: {error}") from None
    return report


def _without_hub(architecture: str, folder: Path) -> dict[str, Any]:
    """Settings for a checkpoint without weights files, and the shape that it is for."""
    from vidgen_ray.model.checkpoint import open_checkpoint
    from vidgen_ray.model.untrained import ARCHITECTURES, make_checkpoint

    if architecture not in ARCHITECTURES:
        raise ConfigError(
            f"architecture: must be one of {sorted(ARCHITECTURES)}, got {architecture!r}"
        )
    make_checkpoint(architecture, folder, weights=False)
    found = open_checkpoint(load_config("nano", {"model.checkpoint": str(folder)}).model)
    shape = {name: getattr(found, name) for name in ("num_frames", "height", "width")}
    settings = {f"generation.{name}": value for name, value in shape.items()}
    return {**settings, "model.checkpoint": str(folder)}


def _read_summary(path: Path) -> "ProjectSummary | None":
    """What is there already; a file that is none of ours is not overwritten."""
    from vidgen_ray.schema import ProjectSummary

    if not path.exists():
        return None
    try:
        return ProjectSummary.model_validate_json(path.read_text())
    except (OSError, ValidationError, UnicodeDecodeError):
        raise RequestError(
            f"summary: {path} is not a project summary; move it away, or name another --summary"
        ) from None


def _resolve(fields: dict[str, Any], config: Config) -> "GenerationRequest":
    from vidgen_ray.schema import resolve_request

    try:
        return resolve_request({**fields, "mode": "baseline", "profile": None}, config)
    except ValidationError as error:
        raise RequestError("; ".join(describe(error))) from None


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise RequestError(f"{option}: must be numbers with commas between, got {text!r}") from None


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def _as_table(report: "BenchmarkReport") -> Table:
    shown = Table("profile", "steps", "s a clip", "speed-up", "clips/h", "VRAM", "latents", "PSNR")
    for row in report.rows:
        if row.error:
            shown.add_row(row.name, "", row.error)
            continue
        steps = f"{row.num_inference_steps}, {row.num_computed_steps} computed"
        difference = row.difference
        psnr = "-"
        if difference:
            psnr = "equal" if difference.psnr_db is None else f"{difference.psnr_db:.1f} dB"
        latents = difference.latents if difference else None
        shown.add_row(
            row.name,
            steps,
            f"{row.seconds['total'].median:.2f}",
            f"{row.speedup:.2f}x" if row.speedup else "-",
            f"{row.clips_per_hour:.1f}",
            f"{row.peak_vram_gb:.1f} GB" if row.peak_vram_gb else "-",
            f"{latents:.4f}" if latents is not None else "-",
            psnr,
        )
    return shown
