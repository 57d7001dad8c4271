"""`vidgen`: the commands a desk and its operators type."""

import sys
from typing import Annotated

import typer
from rich.console import Console

from vidgen_ray.cli import operations
from vidgen_ray.cli.batch import batch
from vidgen_ray.cli.benchmark import benchmark, calibrate
from vidgen_ray.cli.dataset import dataset_app
from vidgen_ray.cli.generate import generate
from vidgen_ray.cli.options import AddressOption, ConfigOption, SetOption
from vidgen_ray.cli.prompts import prompts
from vidgen_ray.cli.score import score
from vidgen_ray.cli.train import encode, train
from vidgen_ray.cli.validate import validate
from vidgen_ray.config import load_config, parse_overrides
from vidgen_ray.errors import ConfigError, DatasetError, Interrupted, RequestError, VidgenError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Image to video for newsrooms: one photo and one prompt become a 6-second clip.",
)

_console = Console()
_errors = Console(stderr=True)


app.command()(batch)
app.command()(generate)
app.command()(score)


@app.command()
def doctor(
    config: ConfigOption = "cogvideox_5b_i2v",
    load: Annotated[bool, typer.Option(help="Load the model in its dtype.")] = True,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Look at every node of a Ray cluster instead.")
    ] = False,
    address: AddressOption = None,
    output: Annotated[
        str | None, typer.Option(help="Storage that every node of the cluster must write.")
    ] = None,
    settings: SetOption = None,
) -> None:
    """Check whether this machine, or each node of a cluster, can generate clips.

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
def serve(
    config: Annotated[str, typer.Argument(help="Serve config file, such as serve_config.yaml.")],
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster, or `local` for one of its own; default: as `serve run`."),
    ] = None,
) -> None:
    """Check a server's config file, then run it: `serve run`, which a mistake ends at once.

    Exit codes: 2 for a mistake in the file, a port in use, or an output that cannot be written.
    """
    from vidgen_ray.serving.launch import serve as run

    run(config, address)


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
        _errors.print("stopped; run the same command again to resume", highlight=False)
        sys.exit(128 + stop.signal_number)
