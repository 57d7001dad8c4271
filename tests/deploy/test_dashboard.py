"""Every query of the dashboard, and every alert without its threshold, has data under load."""

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.support.dashboard import (
    PROMETHEUS,
    Prometheus,
    draw,
    expression_of,
    make_clips,
    panels,
    prometheus,
)
from tests.support.local_cluster import BIN, LocalCluster, free_port
from tests.support.mixed_load import BatchRun, Service, until
from tests.support.tiny_model import tiny_settings
from vidgen_ray.datasets.metadata import write_metadata
from vidgen_ray.schema import Clip, ClipSource, Video
from vidgen_ray.video_io import write_video

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="needs Prometheus; on Debian or Ubuntu: apt-get install prometheus",
    ),
]

# Recorded on an H200 that made clips and trained.
GPU_SCRAPE = Path(__file__).with_name("gpu_host.prom")


def queries() -> list[Any]:
    return [
        pytest.param(expression_of(target, "5m"), id=f"{panel['title']}-{target['refId']}")
        for panel in panels()
        for target in panel["targets"]
    ]


def alert_sides() -> list[Any]:
    """Both sides of `and` of each alert, without their thresholds."""
    (group,) = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    found = []
    for rule in group["rules"]:
        for number, side in enumerate(re.split(r"\s+and on\(\)\s+", rule["expr"])):
            bare, count = re.subn(r"\s*[<>]=?\s*[\d.]+\s*$", "", side)
            assert count == 1, side
            found.append(pytest.param(bare, id=f"{rule['alert']}-{number}"))
    return found


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_folder: Path,
    tiny_latents: Path,
    tiny_training: dict[str, object],
) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("watched")
    cluster = LocalCluster(folder / "cluster")
    settings = tiny_settings(tiny_folder)
    # Every clip of the server is rejected once, so that there are retries.
    strict = {**settings, "quality.min_temporal_score": 1.0, "quality.max_attempts": 2}
    batch = BatchRun(cluster, folder / "batch", 200, settings)
    service = Service(cluster, folder / "service", strict)
    try:
        cluster.start(num_workers=2)
        service.deploy()
        with prometheus(cluster, folder / "prometheus", _gpu_host()) as running:
            batch.start()
            until(lambda: batch.num_done() > 1, 600, "the first clips of the batch")
            make_clips(service, 20)
            with _works(cluster, folder, tiny_latents, tiny_training) as begin:
                begin("encode")  # first, for the trainer takes what it can get
                await_series(running, "job_seconds_count", "encoded_clips_total")
                begin("train")
                await_series(running, "train_loss")
                ended = num_ended(running)  # again, for the first ones may be long ago
                make_clips(service, 15)
                until(lambda: num_ended(running) > ended, 600, "another job that ended")
                yield running
            batch.kill()
    finally:
        cluster.close()


def await_series(running: Prometheus, *names: str) -> None:
    for name in names:
        until(partial(running.query, f"ray_vidgen_{name}"), 600, name)


def num_ended(running: Prometheus) -> float:
    """Jobs of the server that have ended."""
    (sample,) = running.query("sum(ray_vidgen_job_seconds_count)")
    return float(sample["value"][1])


@contextmanager
def _works(
    cluster: LocalCluster, folder: Path, latents: Path, settings: dict[str, object]
) -> Iterator[Callable[[str], None]]:
    """Begins more clips to encode, or more steps to train, than there is time for."""
    film = folder / "film.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (320, 64, 96, 3), dtype=np.uint8)
    write_video(film, Video(noise, 8))
    source = ClipSource(dataset="test", licence="CC0")
    spans = ((n, 0.3 * n) for n in range(120))
    clips = [
        Clip(id=str(n), video=str(film), prompt="pan left", start_s=s, end_s=s + 2, source=source)
        for n, s in spans
    ]
    metadata = folder / "metadata.jsonl"
    write_metadata(str(metadata), clips)
    settings = {**settings, "training.num_epochs": 10_000}
    shared = ["--config=training/lora_nano", f"--address={cluster.address}"]
    shared += [f"--set={name}={json.dumps(value)}" for name, value in settings.items()]
    words = {
        "encode": [str(metadata), f"--output={folder / 'latents'}"],
        "train": [f"--latents={latents}", f"--output={folder / 'lora'}", "--num-workers=1"],
    }
    with ExitStack() as stack:
        log = stack.enter_context((folder / "works.log").open("wb"))

        def begin(work: str) -> None:
            process = subprocess.Popen(
                [str(BIN / "vidgen"), work, *words[work], *shared],
                stdout=log,
                stderr=log,
                env=cluster.environment(),
            )
            stack.callback(process.wait)
            stack.callback(process.kill)

        yield begin


def _gpu_host() -> list[str]:
    """The address of an exporter that repeats the recorded scrape."""

    class Page(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(GPU_SCRAPE.read_bytes())

        def log_message(self, *_: object) -> None:
            pass

    port = free_port()
    listener = ThreadingHTTPServer(("127.0.0.1", port), Page)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    return [f"127.0.0.1:{port}"]


def test_prometheus_finds_every_node_by_itself(server: Prometheus) -> None:
    assert len(server.targets()) >= 3  # head, worker, the dashboard's own


@pytest.mark.parametrize("expression", queries())
def test_a_panel_has_data(server: Prometheus, expression: str) -> None:
    samples = server.query(expression)
    assert samples, expression
    assert any(sample["value"][1] != "NaN" for sample in samples), (expression, samples)


@pytest.mark.parametrize("expression", alert_sides())
def test_an_alert_has_data(server: Prometheus, expression: str) -> None:
    assert server.query(expression), expression


def test_the_panels_can_be_drawn(server: Prometheus, tmp_path: Path) -> None:
    end = time.time()
    draw(server, end - 180, end, tmp_path / "dashboard.png")
    assert (tmp_path / "dashboard.png").stat().st_size > 20_000
