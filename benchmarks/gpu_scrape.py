"""Records what a GPU host exports, for tests elsewhere: python -m benchmarks.gpu_scrape FILE.

Two clips of the embedded model are made on the GPU; the series about GPUs are kept, as one page.
"""

import json
import re
import sys
import tempfile
import time
from pathlib import Path

import httpx
import ray
from rich.console import Console

from benchmarks.mixed_load import LENIENT, PHOTO
from vidgen_ray.config import load_config
from vidgen_ray.distributed.batch import BatchArguments, run_batch

_GPU_SERIES = re.compile(r"(# (HELP|TYPE) )?ray_(node_(gram|gpus)|vidgen_\w*vram)")


def main(path: Path) -> None:
    ray.init(address="local", _system_config={"metrics_report_interval_ms": 1000})
    folder = Path(tempfile.mkdtemp())
    rows = [{"id": f"clip-{n}", "image": str(PHOTO), "prompt": "slow push in"} for n in range(2)]
    (folder / "jobs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = {**LENIENT, "batch.num_gpus_per_worker": 1, "model.dtype": "float16"}
    config = load_config("nano", overrides)
    arguments = BatchArguments(str(folder / "jobs.jsonl"), str(folder / "out"), config, "nano")
    run_batch(arguments, Console())
    time.sleep(10)  # until every process has reported
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    lines = httpx.get(url, trust_env=False).text.splitlines()
    kept = [line for line in lines if _GPU_SERIES.match(line)]
    path.write_text("\n".join(kept) + "\n")
    print(f"{len(kept)} lines of {len(lines)} in {path}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
