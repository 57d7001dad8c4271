"""Draw the Grafana panels under load: python -m benchmarks.dashboard docs/dashboard.png."""

import argparse
import tempfile
import time
from pathlib import Path

from tests.support.dashboard import draw, make_clips, prometheus
from tests.support.local_cluster import LocalCluster, end_in_order
from tests.support.mixed_load import BatchRun, Service
from tests.support.tiny_model import make_tiny_checkpoint, tiny_settings


def main() -> None:
    end_in_order()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--seconds", type=float, default=150)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="vidgen-dashboard-"))
    cluster = LocalCluster(folder / "cluster")
    settings = tiny_settings(make_tiny_checkpoint(folder / "tiny"))
    # So high that about half of the clips are made again.
    strict = {**settings, "quality.min_temporal_score": 0.635, "quality.max_attempts": 2}
    batch = BatchRun(cluster, folder / "batch", 150, settings)
    service = Service(cluster, folder / "service", strict)
    try:
        cluster.start(num_workers=2)
        service.deploy()
        with prometheus(cluster, folder / "prometheus") as server:
            start = time.time()
            batch.start()
            make_clips(service, options.seconds)
            draw(server, start, time.time(), options.picture)
        batch.kill()
    finally:
        cluster.close()


if __name__ == "__main__":
    main()
