"""Encoding as a Ray job; the arguments are those of `vidgen encode`.

ray job submit --working-dir . -- python jobs/encode.py s3://desk/metadata.jsonl --output s3://desk/l
"""

import check_python  # noqa: F401 (before what it looks for)
import typer

from vidgen_ray.cli import run_and_exit
from vidgen_ray.cli.train import encode

if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(encode)
    run_and_exit(app)
