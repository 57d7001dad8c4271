"""The operators' commands: examine a cluster, prefetch the model, plan capacity."""

import os
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vidgen_ray.cli.options import ConfigOption, SetOption, absolute, counted
from vidgen_ray.config import Config, load_config, parse_overrides
from vidgen_ray.errors import RequestError

if TYPE_CHECKING:
    from vidgen_ray.operations.capacity import Rate, Scaling

_console = Console()
_MARKS = {True: "ok", False: "MISSING", None: "note"}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

AddressOption = Annotated[
    str | None,
    typer.Option(help="Ray cluster (auto, host:port): every node of it. Default: this machine."),
]


def examine_cluster(config: Config, address: str | None, output: str | None) -> bool:
    """Print the results of `vidgen doctor --cluster`; whether every node can generate clips."""
    from vidgen_ray.cluster.connect import connected
    from vidgen_ray.operations import fleet

    healthy = True
    with connected(address or os.environ.get("RAY_ADDRESS") or "auto"):
        shown = None
        for finding in fleet.examine_cluster(config, absolute(output) if output else None):
            if finding.node != shown:
                shown = finding.node
                _print(f"{shown}:")
            check = finding.check
            healthy = healthy and check.ok is not False
            _print(f"  {_MARKS[check.ok]:8}{check.name:12}{check.finding}")
    return healthy


def prefetch(
    config: ConfigOption = "cogvideox_5b_i2v",
    address: AddressOption = None,
    settings: SetOption = None,
) -> None:
    """Download the model's weights to this machine, or with --address to every node, once.

    Exit codes: 0 they are there, 1 not on every node, 2 bad configuration.
    """
    model = load_config(config, parse_overrides(settings or [])).model
    if address is None:
        from vidgen_ray.model.checkpoint import open_checkpoint

        start = time.monotonic()
        checkpoint = open_checkpoint(model)
        spent_s = time.monotonic() - start
        _print(f"{model.checkpoint}: {checkpoint.folder}, {spent_s:.1f} s")
        return
    from vidgen_ray.cluster.connect import connected
    from vidgen_ray.operations.fleet import prefetch_everywhere

    complete = True
    with connected(address):
        for finding in prefetch_everywhere(model):
            complete = complete and finding.check.ok is True
            _print(f"{_MARKS[finding.check.ok]:8}{finding.node}  {finding.check.finding}")
    raise typer.Exit(0 if complete else 1)


def plan(
    clips: Annotated[int, typer.Option(min=1, help="Number of clips.")],
    deadline: Annotated[str, typer.Option(help="Time until the deadline: 90m, 24h, 2d.")] = "24h",
    gpu: Annotated[
        str | None, typer.Option(help="Part of a measured device's name, such as h200.")
    ] = None,
    price_per_gpu_hour: Annotated[
        float | None, typer.Option(min=0, help="In your currency; gives the cost.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="A measured profile, such as exact. Default: baseline.")
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option(
            help="summary.json of a batch of yours, or a PROJECT_SUMMARY.json. Default: the rates "
            "that were measured for the documentation."
        ),
    ] = None,
    start: Annotated[
        str, typer.Option(help="Time to start a GPU node, before weights load.")
    ] = "5m",
    arrivals_per_hour: Annotated[
        float | None,
        typer.Option(min=0.001, help="Also simulate a server with this rate of random requests."),
    ] = None,
    min_replicas: Annotated[int, typer.Option(min=0, help="Of the simulated server.")] = 1,
    max_replicas: Annotated[int, typer.Option(min=1, help="Of the simulated server.")] = 8,
) -> None:
    """Print how many GPUs, hours and how much money clips take, from measured rates.

    Exit codes: 0 there is a plan, 2 there is none: no rate for this GPU, or too near a deadline.
    """
    from vidgen_ray.operations import capacity

    measured = capacity.read_rates(rates)
    rate = capacity.choose_rate(measured, gpu, profile)
    start_s = _seconds("start", start)
    batch = capacity.plan_batch(
        rate,
        clips,
        deadline_s=_seconds("deadline", deadline),
        start_s=start_s,
        price_per_gpu_hour=price_per_gpu_hour,
    )
    _print_rate(rate, capacity.rates_on(measured, gpu))
    cost = "" if batch.cost is None else f", costs {batch.cost:,.2f}"
    _print(
        f"batch:  {counted(clips, 'clip')} in {batch.wall_s / 3600:.1f} h on "
        f"{counted(batch.num_gpus, 'GPU')}: {batch.gpu_hours:.1f} GPU-hours{cost}; "
        f"{counted(batch.num_score_cores, 'CPU core')} to score"
    )
    if arrivals_per_hour is not None:
        scaling = capacity.Scaling(min_replicas, max_replicas, start_s=start_s + rate.load_s)
        _print_server(rate, scaling, arrivals_per_hour, price_per_gpu_hour)


def _print_rate(rate: "Rate", all_rates: "Sequence[Rate]") -> None:
    _print(
        f"rate:   {rate.clip_s:.1f} s of {rate.device} a clip and {rate.cpu_s:.1f} s of a CPU core "
        f"({rate.name}{f', {rate.profile}' if rate.profile else ''}), "
        f"{rate.attempts_per_clip:.2f} attempts a clip"
    )
    others = [
        f"{each.profile} {each.clip_s:.1f} s"
        for each in all_rates
        if each.profile not in {None, rate.profile} and each.device == rate.device
    ]
    if others:
        _print(f"        other profiles: {', '.join(others)} (--profile)")


def _print_server(
    rate: "Rate", scaling: "Scaling", arrivals_per_hour: float, price_per_gpu_hour: float | None
) -> None:
    """Simulate a server under random requests. Raises RequestError for one that cannot keep up."""
    from vidgen_ray.operations import capacity

    least, most = scaling.min_replicas, scaling.max_replicas
    if least > most:
        raise RequestError(f"min_replicas: must be at most max_replicas ({most}), got {least}")
    clip_s = rate.clip_s * rate.attempts_per_clip
    if arrivals_per_hour * clip_s / 3600 >= most:
        raise RequestError(
            f"max_replicas: {most} GPUs generate {most * 3600 / clip_s:.0f} clips an hour, less "
            f"than the {arrivals_per_hour:g} requests: the queue would grow without bound; raise it"
        )
    hours = max(24.0, 2000 / arrivals_per_hour)
    waiting = capacity.simulate(
        capacity.poisson_arrivals(arrivals_per_hour, hours), clip_s, scaling
    )
    price = ""
    if price_per_gpu_hour is not None:
        price = f", {waiting.mean_replicas * price_per_gpu_hour:.2f} an hour"
    _print(
        f"server: {waiting.num_clips} random requests over {hours:.0f} h wait "
        f"{waiting.p50_s:.0f} s (median), {waiting.p99_s:.0f} s (p99); "
        f"{waiting.mean_replicas:.1f} GPUs on average, {waiting.utilisation:.0%} busy{price}"
    )


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command()(prefetch)
    app.command()(plan)


def _seconds(name: str, text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip())
    if match is None:
        raise RequestError(f"{name}: must be a number with s, m, h or d such as 24h, got {text!r}")
    return float(match[1]) * _UNITS[match[2]]


def _print(line: str) -> None:
    _console.print(line, highlight=False, markup=False, soft_wrap=True)
