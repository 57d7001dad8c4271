"""What a benchmark leaves behind: a table in CSV, a plot, a page, and the project's summary."""

import csv
import io
from importlib import resources

from jinja2 import Environment, StrictUndefined
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import vidgen_ray
from vidgen_ray.generation.report import STAGE_LABELS
from vidgen_ray.schema import BenchmarkReport, BenchmarkRow, ProjectSummary

_COLOURS = ["#7d93ab", "#a9b9c9", "#27496d", "#b98a4a"]


def table(report: BenchmarkReport) -> str:
    """CSV, a line for each row of the report."""
    lines = [_cells(row) for row in report.rows]
    names = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _cells(row: BenchmarkRow) -> dict[str, object]:
    plain = row.model_dump(exclude={"model", "seconds", "difference"})
    error = plain.pop("error")
    for stage, spread in row.seconds.items():
        name = stage.removesuffix("_s")
        plain |= {f"{name}_{part}_s": value for part, value in spread.model_dump().items()}
    if row.difference:
        plain |= {f"difference_{name}": value for name, value in row.difference}
    return {**plain, "error": error}


def plot(report: BenchmarkReport) -> bytes:
    """Median seconds of each stage as stacked bars, a PNG."""
    rows = [row for row in report.rows if row.seconds]
    figure = Figure(figsize=(9, 1.4 + 0.5 * len(rows)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    left = [0.0] * len(rows)
    stages = [name for name in STAGE_LABELS if any(name in row.seconds for row in rows)]
    for stage, colour in zip(stages, _COLOURS, strict=False):
        widths = [row.seconds[stage].median if stage in row.seconds else 0.0 for row in rows]
        names = [row.name for row in rows]
        axes.barh(names, widths, left=left, label=STAGE_LABELS[stage], color=colour)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, (row, end) in enumerate(zip(rows, left, strict=True)):
        ratio = f"  {row.speedup:.2f}x" if row.speedup else ""
        axes.text(end, place, f" {end:.1f} s{ratio}", va="center", fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.set_xlabel(f"median seconds a clip, {report.device}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(ncols=4, frameon=False, loc="outside upper center")
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def page(report: BenchmarkReport, plot_name: str, csv_name: str) -> str:
    """One HTML page; `plot_name` and `csv_name` are files beside it."""
    template = (resources.files("vidgen_ray.benchmark") / "benchmark.html").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(template).render(
        report=report, plot=plot_name, csv=csv_name, stages=STAGE_LABELS
    )


def summarized(
    summary: ProjectSummary | None, name: str, report: BenchmarkReport
) -> ProjectSummary:
    """The project's summary with this report under `name`; the rest of it stays."""
    if summary is None:
        summary = ProjectSummary(
            project="vidgen-ray", version=vidgen_ray.__version__, batches={}, documents=[]
        )
    return summary.model_copy(update={"benchmarks": {**summary.benchmarks, name: report}})
