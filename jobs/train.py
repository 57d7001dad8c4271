"""Training as a Ray job; the arguments are those of `vidgen train`.

ray job submit --working-dir . -- python jobs/train.py --latents s3://desk/l --output s3://desk/lora
"""

import check_python  # noqa: F401 (before what it looks for)
import typer

from vidgen_ray.cli import run_and_exit
from vidgen_ray.cli.train import train

if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(train)
    run_and_exit(app)
