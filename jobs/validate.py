"""An adapter's validation as a Ray job; the arguments are those of `vidgen validate`.

ray job submit --working-dir . -- python jobs/validate.py --lora /shared/press --output s3://desk/v1
"""

import check_python  # noqa: F401 (before what it looks for)
import typer

from vidgen_ray.cli import run_and_exit
from vidgen_ray.cli.validate import validate

if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(validate)
    run_and_exit(app)
