"""The benchmark as a Ray job; the arguments are those of `vidgen benchmark`.

ray job submit --entrypoint-num-gpus 1 --working-dir . -- python jobs/benchmark.py --image
s3://desk/photo.jpg --prompt "Slow push in" --csv /shared/benchmarks.csv --summary /shared/ps.json
"""

import check_python  # noqa: F401 (before what it looks for)
import typer

from vidgen_ray.cli import run_and_exit
from vidgen_ray.cli.benchmark import benchmark

if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(benchmark)
    run_and_exit(app)
