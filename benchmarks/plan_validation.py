"""What `vidgen plan` says against what happens, with the embedded model on one worker:
python -m benchmarks.plan_validation (`--clips 0` for the server's queue alone)."""

import argparse
import contextlib
import json
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.local_cluster import LocalCluster, end_in_order
from benchmarks.mixed_load import LENIENT, BatchRun, Service, until
from vidgen_ray.operations.capacity import (
    Scaling,
    choose_rate,
    plan_batch,
    poisson_arrivals,
    read_rates,
    simulate,
)

_LOAD = 0.7  # of the server's one generator


def main() -> None:
    end_in_order()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-inference-steps", type=int, default=4)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=12)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="vidgen-plan-"))
    settings = {**LENIENT, "generation.num_inference_steps": options.num_inference_steps}
    settings |= {"quality.max_attempts": 1, "generation.num_frames": 9}
    settings |= {"generation.allow_untrained_shape": True}  # nine frames, for the sake of time
    cluster = LocalCluster(folder / "cluster")
    try:
        cluster.start(num_workers=1)
        rates = read_rates(str(_run(cluster, folder / "small", 3, settings)))
        rate = choose_rate(rates, "cpu")
        print("| | predicted | measured |\n|---|---|---|")
        if options.clips:
            done = _run(cluster, folder / "large", options.clips, settings)
            wall_s = json.loads(done.read_text())["wall_s"]
            plan = plan_batch(
                rate, options.clips, deadline_s=1e9, start_s=0, price_per_gpu_hour=None
            )
            said = f"batch of {options.clips}, from the rates of 3"
            print(f"| {said} | {plan.wall_s:.0f} s | {wall_s:.0f} s |", flush=True)
        service = Service(cluster, folder / "service", settings)
        service.deploy()
        for line in _serve(service, rate.clip_s, options.jobs):
            print(line)
    finally:
        cluster.close()


def _run(cluster: LocalCluster, folder: Path, num_clips: int, settings: dict[str, object]) -> Path:
    batch = BatchRun(cluster, folder, num_clips, settings).start()
    assert batch.wait() == 0, batch.log.read_text()
    return batch.output / "summary.json"


def _serve(service: Service, clip_s: float, num_jobs: int) -> list[str]:
    """Jobs at random times; how long they waited, and how long the simulation says."""
    service.post()  # the weights are warm after it
    until(lambda: service.num_open() == 0, 300, "the first job")
    arrivals = poisson_arrivals(_LOAD * 3600 / clip_s, hours=100, seed=3)[:num_jobs]
    begun = time.time()
    for arrival in arrivals:
        time.sleep(max(0.0, begun + arrival - time.time()))
        service.post()
    until(lambda: service.num_open() == 0, 600, "the jobs", every_s=1)
    with contextlib.closing(sqlite3.connect(service.output / "jobs.db")) as store:
        query = "select created_at, started_at from vidgen_jobs order by created_at"
        rows = store.execute(query).fetchall()[1:]
    waits = [started - created for created, started in rows]
    came = [created - rows[0][0] for created, _ in rows]
    measured = [statistics.mean(waits), statistics.median(waits), max(waits)]
    lines = []
    took_s = _mean_clip_s(service)
    for said, each_s in (
        (f"the rate of a batch, {clip_s:.1f} s a clip", clip_s),
        (f"what these clips took, {took_s:.1f} s", took_s),
    ):
        foreseen = simulate(came, each_s, Scaling(1, 1))
        pairs = zip((foreseen.mean_s, foreseen.p50_s, foreseen.p99_s), measured, strict=True)
        for name, (predicted, waited) in zip(("mean", "median", "worst"), pairs, strict=True):
            line = f"wait of {num_jobs} jobs at random, {name}, from {said}"
            lines.append(f"| {line} | {predicted:.1f} s | {waited:.1f} s |")
    return lines


def _mean_clip_s(service: Service) -> float:
    """Seconds that a clip held the generator, by the records of all but the first."""
    stages = ("text_s", "image_encode_s", "denoise_s", "decode_s")
    records = [
        json.loads((service.output / f"{video_id}.json").read_text())
        for video_id in service.accepted[1:]
    ]
    return statistics.mean(
        sum(record["stages"][stage] or 0.0 for stage in stages) for record in records
    )


if __name__ == "__main__":
    main()
