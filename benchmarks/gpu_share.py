"""How busy a batch kept its GPU: the share of a clip's time not spent denoising or decoding.

    python benchmarks/gpu_share.py OUTPUT...

Reads the records of a finished run on one GPU with three clips or more. The time of a clip is the
time between the commits of two clips in a row, once the pipeline runs full.
"""

import json
import statistics
import sys
from datetime import datetime
from itertools import pairwise
from pathlib import Path


def main(outputs: list[str]) -> None:
    for output in outputs:
        lines = (Path(output) / "manifest.jsonl").read_text().splitlines()
        records = sorted(map(json.loads, lines), key=lambda record: record["created_at"])
        times = [datetime.fromisoformat(record["created_at"]) for record in records]
        periods = [(late - early).total_seconds() for early, late in pairwise(times)]
        for record in records:
            stages = {name: round(s, 2) for name, s in record["stages"].items() if s is not None}
            print(record["id"], record["status"], record["model"]["dtype"], stages)
        busy = statistics.median(
            record["stages"]["denoise_s"] + record["stages"]["decode_s"] for record in records[1:]
        )
        period = statistics.median(periods)
        print(
            f"{output}: a clip every {period:.2f} s, {busy:.2f} s of it denoising and decoding: "
            f"{1 - busy / period:.1%} other; peak VRAM {records[-1]['peak_vram_gb']:.1f} GB, "
            f"offload {records[-1]['model']['offload']}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
