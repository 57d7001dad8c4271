"""Render the HTML page of a check: distributions of the clips and the marked ones."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
from jinja2 import Environment, StrictUndefined

from vidgen_ray.schema import ClipCheck

MAX_ROWS = 500

_NUM_BARS = 24

MARKS = {
    "undecodable": "the file does not decode",
    "short": "shorter than a training clip",
    "slow": "fewer frames a second than a training clip",
    "small": "shorter side under the minimum",
    "interlaced": "interlaced: moving edges show combs; deinterlace it",
    "cut": "contains a cut to another shot",
    "static": "hardly moves",
    "duplicate": "looks like an earlier clip",
}


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram: its range, count, and height in percent."""

    start: float
    end: float
    count: int
    percent: float


@dataclass(frozen=True)
class Histogram:
    """The distribution of a measure; the last bar also counts the largest 5 %."""

    title: str
    unit: str
    bars: list[Bar]
    median: float


def render_check(
    found: Sequence[tuple[str, str, ClipCheck]], num_rows: int, num_missing_rows: int
) -> str:
    """The page of `found`, each clip with its id, address and check."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = resources.files("vidgen_ray.datasets").joinpath("check_report.html").read_text("utf-8")
    counts = Counter(mark for _, _, check in found for mark in check.marks)
    marked = [entry for entry in found if entry[2].marks]
    checks = [check for _, _, check in found]
    sides = [min(check.width, check.height) for check in checks if check.width and check.height]
    measures: list[tuple[str, str, Sequence[float | None]]] = [
        ("Duration", "s", [check.duration_s for check in checks]),
        ("Frame rate", "frames a second", [check.fps for check in checks]),
        ("Shorter side", "px", sides),
        ("Motion", "px a second at 480 lines", [check.motion_px for check in checks]),
    ]
    histograms = [_histogram(title, unit, values) for title, unit, values in measures]
    return environment.from_string(text).render(
        num_rows=num_rows,
        num_missing_rows=num_missing_rows,
        num_clips=len(found),
        num_unmarked=len(found) - len(marked),
        marks=[(mark, MARKS[mark], counts[mark]) for mark in MARKS if counts[mark]],
        histograms=[histogram for histogram in histograms if histogram],
        marked=marked[:MAX_ROWS],
        num_marked=len(marked),
    )


def _histogram(title: str, unit: str, values: Sequence[float | None]) -> Histogram | None:
    known = np.array([value for value in values if value is not None], float)
    if not known.size:
        return None
    # A few very long clips would squeeze all other clips into one bar.
    top = max(float(np.quantile(known, 0.95)), float(known.min()) + 1e-9)
    counts, edges = np.histogram(np.minimum(known, top), _NUM_BARS, (float(known.min()), top))
    bars = [
        Bar(float(start), float(end), int(count), 100 * count / counts.max())
        for start, end, count in zip(edges, edges[1:], counts, strict=False)
    ]
    return Histogram(title, unit, bars, float(np.median(known)))
