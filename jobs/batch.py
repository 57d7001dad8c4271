"""Batch generation as a Ray job; the arguments are those of `vidgen batch`.

ray job submit --working-dir . -- python jobs/batch.py s3://desk/jobs.jsonl --output s3://desk/run1
"""

import check_python  # noqa: F401 (before what it looks for)
import typer

from vidgen_ray.cli import run_and_exit
from vidgen_ray.cli.batch import batch

if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(batch)
    run_and_exit(app)
