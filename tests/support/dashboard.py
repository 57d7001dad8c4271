"""The dashboard of deploy/grafana on a real Prometheus that scrapes a local cluster."""

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import matplotlib
import yaml

from tests.support.local_cluster import LocalCluster, free_port
from tests.support.mixed_load import Service, until
from tests.support.tiny_model import ROOT

DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "vidgen.json"
PROMETHEUS = ROOT / "deploy" / "prometheus"
RATE_INTERVAL = "30s"


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus server with the configuration that this project ships."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an expression now."""
        return self._get("query", query=expression)

    def query_range(self, expression: str, start: float, end: float) -> list[dict[str, Any]]:
        """The series of an expression, in 120 steps."""
        step = max(1.0, (end - start) / 120)
        return self._get("query_range", query=expression, start=start, end=end, step=step)

    def targets(self) -> list[str]:
        """Addresses that were scraped well."""
        active = httpx.get(f"{self.url}/api/v1/targets", trust_env=False).json()["data"]
        return [each["scrapeUrl"] for each in active["activeTargets"] if each["health"] == "up"]

    def _get(self, kind: str, **parameters: Any) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.url}/api/v1/{kind}", params=parameters, trust_env=False)
        body = answer.json()
        assert body["status"] == "success", body
        result: list[dict[str, Any]] = body["data"]["result"]
        return result


@contextmanager
def prometheus(
    cluster: LocalCluster, folder: Path, more_targets: Sequence[str] = ()
) -> Iterator[Prometheus]:
    """Prometheus on the shipped files, with this cluster's discovery file and quicker scrapes."""
    tree = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    # As long a timeout as a busy machine needs: a scrape that is late ends every gauge.
    tree["global"] = {"scrape_interval": "5s", "scrape_timeout": "5s", "evaluation_interval": "5s"}
    (discovery,) = tree["scrape_configs"][0]["file_sd_configs"]
    (name,) = discovery["files"]
    discovery["files"] = [str(cluster.temp_dir / Path(name).relative_to("/tmp/ray"))]
    discovery["refresh_interval"] = "2s"
    tree["scrape_configs"][0]["static_configs"] = [{"targets": list(more_targets)}]
    tree["rule_files"] = [str(PROMETHEUS / rules) for rules in tree["rule_files"]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(tree))
    port = free_port()
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    server = Prometheus(f"http://127.0.0.1:{port}")
    try:
        until(lambda: _answers(server), 60, "Prometheus")
        yield server
    finally:
        process.terminate()
        process.wait()


def _answers(server: Prometheus) -> bool:
    try:
        return httpx.get(f"{server.url}/-/ready", trust_env=False).is_success
    except httpx.HTTPError:
        return False


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels; `row` is the title of the row that each stands in."""
    found, row = [], ""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        else:
            found.append({**panel, "row": row})
    return found


def expression_of(target: dict[str, Any], window: str = RATE_INTERVAL) -> str:
    """A target's query as Grafana would send it."""
    return str(target["expr"]).replace("$__rate_interval", window)


def make_clips(service: Service, seconds: float) -> None:
    """Keep the server's queue at two jobs or more."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if service.num_open() < 3:
            service.post()
        time.sleep(0.5)


def draw(server: Prometheus, start: float, end: float, path: Path) -> None:
    """The panels that have data, as Grafana lays them out."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    drawn = [
        (panel, series) for panel in panels() if (series := _series(server, panel, start, end))
    ]
    num_rows = -(-len(drawn) // 3)
    figure, axes = pyplot.subplots(num_rows, 3, figsize=(15, 2.7 * num_rows), squeeze=False)
    for axis in axes.flat[len(drawn) :]:
        axis.axis("off")
    for axis, (panel, series) in zip(axes.flat, drawn, strict=False):
        axis.set_title(panel["title"], fontsize=10, loc="left", fontweight="bold")
        if panel["type"] == "heatmap":
            _draw_heatmap(axis, series, start)
        else:
            for name, times, values in series:
                axis.plot([(t - start) / 60 for t in times], values, label=name, linewidth=1.4)
            axis.set_ylim(bottom=0)
            axis.legend(fontsize=6, loc="upper left", ncols=3, framealpha=0.5)
        axis.set_xlim(0, (end - start) / 60)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
    for axis in axes[-1]:
        axis.set_xlabel("minutes", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=75)


Series = tuple[str, list[float], list[float]]


def _series(server: Prometheus, panel: dict[str, Any], start: float, end: float) -> list[Series]:
    found = []
    for target in panel["targets"]:
        for series in server.query_range(expression_of(target), start, end):
            name = target["legendFormat"]
            for label, value in series["metric"].items():
                name = name.replace("{{" + label + "}}", value)
            points = [(time_s, float(value)) for time_s, value in series["values"]]
            points = [(time_s, value) for time_s, value in points if value == value]  # no NaN
            if points:
                found.append((name, [p[0] for p in points], [p[1] for p in points]))
    return found


def _draw_heatmap(axis: Any, series: list[Series], start: float) -> None:
    """Buckets come added up; a cell is what one has more than the one below."""
    buckets = sorted((float(name), times, values) for name, times, values in series)
    below: dict[float, float] = {}
    for bound, times, values in buckets:
        cells = [max(0.0, v - below.get(t, 0.0)) for t, v in zip(times, values, strict=True)]
        below = dict(zip(times, values, strict=True))
        minutes = [(t - start) / 60 for t in times]
        y = [min(bound, 1.0) - 0.025] * len(minutes)
        axis.scatter(minutes, y, c=cells, cmap="Blues", marker="s", s=12, vmin=0, vmax=3)
    axis.set_ylim(0, 1)
