"""A batch and a server under load and faults: python -m benchmarks.soak --minutes 30."""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

from benchmarks.memory_watch import MemoryWatch
from tests.support.local_cluster import end_in_order
from tests.support.soak import Soak, cycle


def main() -> None:
    end_in_order()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    options = parser.parse_args()
    soak = Soak(Path(tempfile.mkdtemp(prefix="vidgen-soak-")), pause_s=20)
    memory = MemoryWatch(soak.cluster)
    try:
        soak.start()
        memory.start()
        cycles = [time.monotonic()]
        while cycles[-1] < cycles[0] + options.minutes * 60:
            cycle(soak)
            cycles.append(time.monotonic())
        soak.finish()
        memory.stop()
        print(soak.table())
        most = [memory.most_gb(*each) for each in itertools.pairwise(cycles)]
        print("\nMost memory in each cycle, GB:", ", ".join(f"{each:.2f}" for each in most))
        print(memory.table())
    finally:
        memory.stop()
        soak.close()


if __name__ == "__main__":
    main()
