"""Render the report of a batch, one self-contained HTML page beside its clips."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined, Template

from vidgen_ray.schema import (
    BatchSummary,
    GenerationRecord,
    StageTimes,
    ValidatedPrompt,
    Validation,
)

# In the order in which they need attention; the page sorts by it.
STATUS_LABELS = {
    "needs_review": "Needs review",
    "failed": "Failed",
    "quarantined": "Quarantined",
    "accepted": "Accepted",
}
BAR_LABELS = {
    "accepted": "Accepted",
    "needs_review": "Needs review",
    "failed": "Failed",
    "quarantined": "Quarantined",
    "pending": "Pending",
}
STAGE_LABELS = {
    "text_s": "Text",
    "image_encode_s": "Image encode",
    "denoise_s": "Denoise",
    "decode_s": "Decode",
    "score_s": "Score",
    "save_s": "Save",
}
MAX_CHART_COLUMNS = 200
MAX_LIST_ITEMS = 12

Rows = list[tuple[str, str]]
Details = dict[str, Rows]


@dataclass(frozen=True)
class Segment:
    """One part of a stacked bar: `value` in its unit, `percent` of the total."""

    name: str
    label: str
    value: float
    percent: float


@dataclass(frozen=True)
class Mark:
    """Ids that failed at about the same time; `x` and `y` in percent of the chart."""

    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Timeline:
    """Clips finished over a run: an SVG step line in a 100 x 100 box with y pointing down."""

    line: str
    marks: list[Mark]
    num_clips: int
    num_earlier: int


@dataclass(frozen=True)
class Card:
    """One record as the page shows it; addresses are relative, None if there is no file."""

    record: GenerationRecord
    order: int
    rank: int
    label: str
    seconds: float | None
    image_url: str | None
    video_url: str | None
    json_url: str
    details: Details


@dataclass(frozen=True)
class Pair:
    """A prompt of a validation with the cards of its two clips, None for one without a record."""

    prompt: ValidatedPrompt
    without: Card | None
    with_: Card | None


def render_report(
    records: Sequence[GenerationRecord],
    summary: BatchSummary,
    min_temporal_score: float | None = None,
    validation: Validation | None = None,
) -> str:
    """The text of `index.html`, for the folder that holds the clips.

    `records` are in the order of the jobs file; the page shows those that need attention first.
    `min_temporal_score` is the threshold drawn on the gauges, if any. With a `validation` its
    pairs of clips come first, side by side. The page links the video, `<id>.json` and
    `thumbnails/<id>.jpg` by relative address.
    """
    details = [_details(record) for record in records]
    shared = _shared(details)
    cards = [
        _card(record, order, _without(details[order], shared))
        for order, record in enumerate(records)
    ]
    num_untrained = sum(record.model is not None and not record.model.trained for record in records)
    return _template().render(
        summary=summary,
        start=_utc(summary.started_at),
        end=_utc(summary.finished_at),
        headline=_headline(summary),
        cards=sorted(cards, key=lambda card: (card.rank, card.order)),
        shared=shared,
        statuses=_status_counts(records),
        counts=_segments({name: getattr(summary, name) for name in BAR_LABELS}, BAR_LABELS),
        stages=_stage_segments(summary.median_stages),
        timeline=_timeline(records, summary),
        threshold=min_temporal_score,
        validation=validation,
        pairs=_pairs(validation, cards) if validation else [],
        untrained=num_untrained > 0 or (summary.model is not None and not summary.model.trained),
    )


def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"duration": _duration, "moment": _moment, "number": _number}
    text = resources.files("vidgen_ray.generation").joinpath("report.html").read_text("utf-8")
    return environment.from_string(text)


def _pairs(validation: Validation, cards: Sequence[Card]) -> list[Pair]:
    by_id = {card.record.id: card for card in cards}
    return [
        Pair(prompt, by_id.get(prompt.without_id), by_id.get(prompt.with_id))
        for prompt in validation.prompts
    ]


def _headline(summary: BatchSummary) -> str:
    if summary.total == 0:
        return "No clips in this batch"
    others = [
        f"{count} {words}"
        for count, words in [
            (summary.needs_review, "needs review" if summary.needs_review == 1 else "need review"),
            (summary.failed, "failed"),
            (summary.quarantined, "quarantined"),
            (summary.pending, "pending"),
        ]
        if count
    ]
    clips = "clip" if summary.total == 1 else "clips"
    return ", ".join([f"{summary.accepted} of {summary.total} {clips} accepted", *others])


def _card(record: GenerationRecord, order: int, details: Details) -> Card:
    times = [getattr(record.stages, name) for name in STAGE_LABELS]
    known = [seconds for seconds in times if seconds is not None]
    thumbnail = "thumbnails/" + _address(record.id + ".jpg")
    return Card(
        record=record,
        order=order,
        rank=list(STATUS_LABELS).index(record.status),
        label=STATUS_LABELS[record.status],
        # Without the time to load weights, which only the first clip has.
        seconds=sum(known) if known else None,
        image_url=thumbnail if record.image else None,
        video_url=_address(record.artifact.filename) if record.artifact else None,
        json_url=_address(record.id + ".json"),
        details=details,
    )


def _address(filename: str) -> str:
    """A relative address; a colon or slash in `filename` cannot make it absolute."""
    return quote(filename, safe="")


def _details(record: GenerationRecord) -> Details:
    """Everything in the record that its card does not show already, by group."""
    request = record.request
    run = {"run_id", "created_at", "device", "peak_vram_gb", "content_hash"}
    parts = {
        "Temporal score": record.score,
        "Stage times": record.stages,
        "Image": record.image,
        "Clip": record.artifact,
        "Adapter": record.adapter,
        "Model": record.model,
    }
    groups = {
        "Request": _rows(request.model_dump(exclude={"id", "prompt", "metadata"}))
        if request
        else [],
        "Metadata": _rows(request.metadata) if request else [],
        "Attempts": [
            (f"{each.attempt}", f"{_number(each.temporal_score)}, {each.verdict}, seed {each.seed}")
            for each in record.attempts
        ],
        **{title: _rows(part.model_dump()) for title, part in parts.items() if part},
        "Run": _rows(record.model_dump(include=run)),
        "Versions": _rows(record.versions),
    }
    return {title: rows for title, rows in groups.items() if rows}


def _shared(details: Sequence[Details]) -> Details:
    """The rows that are equal in all records with that group, if there are at least two.

    The page shows them once, so that the differences between clips stand out.
    """
    shared: Details = {}
    for title in dict.fromkeys(title for groups in details for title in groups):
        groups_with_title = [groups[title] for groups in details if title in groups]
        if len(groups_with_title) > 1:
            equal = set(groups_with_title[0]).intersection(*groups_with_title[1:])
            shared[title] = [row for row in groups_with_title[0] if row in equal]
    return {title: rows for title, rows in shared.items() if rows}


def _without(groups: Details, shared: Details) -> Details:
    shown = {title: set(rows) for title, rows in shared.items()}
    left = {
        title: [row for row in rows if row not in shown.get(title, set())]
        for title, rows in groups.items()
    }
    return {title: rows for title, rows in left.items() if rows}


def _rows(values: Mapping[str, object], prefix: str = "") -> Rows:
    """Names and printable values of a nested mapping without None and empty values."""
    rows: Rows = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _rows(value, f"{prefix}{name}.")
        elif value is not None and value != "" and value != []:
            rows.append((f"{prefix}{name}", _text(value)))
    return rows


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.1f}"
    if isinstance(value, datetime):
        return _moment(value)
    if isinstance(value, list | tuple):
        more = f" and {len(value) - MAX_LIST_ITEMS} more" if len(value) > MAX_LIST_ITEMS else ""
        return ", ".join(_text(item) for item in value[:MAX_LIST_ITEMS]) + more
    return str(value)


def _status_counts(records: Iterable[GenerationRecord]) -> list[tuple[str, str, int]]:
    """Name, label and count of each status that occurs."""
    statuses = [record.status for record in records]
    return [
        (name, label, statuses.count(name))
        for name, label in STATUS_LABELS.items()
        if name in statuses
    ]


def _segments(values: Mapping[str, float], labels: Mapping[str, str]) -> list[Segment]:
    total = sum(values.values()) or 1
    return [
        Segment(name, labels[name], value, 100 * value / total) for name, value in values.items()
    ]


def _stage_segments(stages: StageTimes) -> list[Segment]:
    times = {name: getattr(stages, name) for name in STAGE_LABELS}
    known = {name: seconds for name, seconds in times.items() if seconds is not None}
    return _segments(known, STAGE_LABELS)


def _timeline(records: Sequence[GenerationRecord], summary: BatchSummary) -> Timeline:
    start = _utc(summary.started_at)
    wall_s = max((_utc(summary.finished_at) - start).total_seconds(), summary.wall_s, 1e-6)
    own = sorted(
        (record for record in records if record.run_id == summary.run_id),
        key=lambda record: _utc(record.created_at),
    )
    total = sum(record.artifact is not None for record in own)
    columns: dict[float, int] = {}
    failed: dict[float, list[str]] = {}
    num_clips = 0
    for record in own:
        elapsed = (_utc(record.created_at) - start).total_seconds() / wall_s
        column = round(min(max(elapsed, 0.0), 1.0) * MAX_CHART_COLUMNS)
        x = column * 100 / MAX_CHART_COLUMNS
        num_clips += record.artifact is not None
        columns[x] = num_clips
        if record.artifact is None:
            failed.setdefault(x, []).append(record.id)
    height = {x: 100 - 100 * count / (total or 1) for x, count in columns.items()}
    steps = [f"H{x:g}V{y:g}" for x, y in height.items()]
    return Timeline(
        line="M0 100" + "".join(steps) + "H100",
        marks=[Mark(x, height[x], _names(ids)) for x, ids in failed.items()],
        num_clips=total,
        num_earlier=len(records) - len(own),
    )


def _names(ids: Sequence[str]) -> str:
    return ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")


def _number(value: float | None, digits: int = 3) -> str:
    return "no score" if value is None else f"{value:.{digits}f}"


def _duration(seconds: float) -> str:
    if seconds < 0.095:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 99.95:
        return f"{seconds:.1f} s" if seconds >= 9.995 else f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _moment(value: datetime) -> str:
    return f"{_utc(value):%d %b %Y, %H:%M:%S} UTC"


def _utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
