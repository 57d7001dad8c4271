"""The outcome of an encoding run: the list of clips, the figures, and what the user reads."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median_high

from vidgen_ray.config import Config, Section
from vidgen_ray.encoding.shards import CLIPS_NAME, ClipEntry, EncodingSettings
from vidgen_ray.encoding.stages import SpanRow
from vidgen_ray.schema import Clip

_MAX_REASONS_SHOWN = 10


class EncodingSummary(Section):
    """Figures of one run: `summary.json`. Counts are of metadata rows, `*_s` are medians a clip."""

    encoded: int
    reused: int
    skipped: int
    rejected: int
    wall_s: float
    prompts_wall_s: float  # of all prompts, including the start of their workers
    clips_per_s: float | None  # of the VAE after the first quarter, when all workers run
    decode_s: float | None
    encode_s: float | None


def group_of(clip: Clip) -> str:
    """Captions of one span of one video with one image share their latents."""
    return repr((clip.video, clip.start_s, clip.end_s, clip.image))


def skip_reason(clip: Clip, config: Config) -> str | None:
    """Why a row is not encoded: it has no video file, or one of `encoding.skip_marks`."""
    if clip.missing:
        return clip.missing
    marks = set(clip.check.marks if clip.check else []) & set(config.encoding.skip_marks)
    return f"marked {', '.join(sorted(marks))}" if marks else None


def clip_entries(
    clips: Sequence[Clip],
    config: Config,
    rows: Mapping[str, SpanRow],
    settings: EncodingSettings,
    truncated: set[str],
) -> list[ClipEntry]:
    """One line for each row of the metadata, in its order; `rows` by group, `truncated` prompts."""
    entries = []
    for clip in clips:
        common = {"id": clip.id, "prompt": clip.prompt, "source": clip.source}
        if skipped := skip_reason(clip, config):
            entries.append(ClipEntry(**common, outcome="skipped", reason=skipped))
            continue
        row = rows[group_of(clip)]
        if row["reason"]:
            entries.append(ClipEntry(**common, outcome="rejected", reason=row["reason"]))
            continue
        entries.append(
            ClipEntry(
                **common,
                outcome="reused" if row["reused"] else "encoded",
                latents=row["key"],
                prompt_key=settings.prompt_key(clip.prompt),
                truncated=clip.prompt in truncated,
            )
        )
    return entries


def summarise(
    entries: Sequence[ClipEntry], rows: Sequence[SpanRow], wall_s: float, prompts_wall_s: float
) -> EncodingSummary:
    """The figures of a run with these lines and rows."""
    counts = Counter(entry.outcome for entry in entries)
    encoded = [row for row in rows if row["encode_s"]]
    ends = sorted(row["encoded_at"] for row in encoded)
    ends = ends[len(ends) // 4 :]
    span = ends[-1] - ends[0] if ends else 0.0
    return EncodingSummary(
        encoded=counts["encoded"],
        reused=counts["reused"],
        skipped=counts["skipped"],
        rejected=counts["rejected"],
        wall_s=wall_s,
        prompts_wall_s=prompts_wall_s,
        clips_per_s=(len(ends) - 1) / span if span else None,
        decode_s=median_high([row["decode_s"] for row in encoded]) if encoded else None,
        encode_s=median_high([row["encode_s"] for row in encoded]) if encoded else None,
    )


def describe_result(summary: EncodingSummary, entries: Sequence[ClipEntry], output: str) -> str:
    """Counts, reasons of rows without latents, licence terms, and where the latents are."""
    counts = ", ".join(
        f"{getattr(summary, name)} {name}" for name in ("encoded", "reused", "skipped", "rejected")
    )
    lines = [f"{len(entries)} rows: {counts}; {summary.wall_s:.0f} s"]
    reasons = [f"  {entry.id}: {entry.reason}" for entry in entries if entry.reason]
    lines += reasons[:_MAX_REASONS_SHOWN]
    if len(reasons) > _MAX_REASONS_SHOWN:
        lines.append(f"  ... and {len(reasons) - _MAX_REASONS_SHOWN} more in {CLIPS_NAME}")
    if num_truncated := sum(entry.truncated for entry in entries):
        verb = "prompt is" if num_truncated == 1 else "prompts are"
        lines.append(f"{num_truncated} {verb} longer than the model reads: see `truncated`")
    for terms in sorted({entry.source.terms or entry.source.licence for entry in entries}):
        lines.append(f"Terms:   {terms}")
    return "\n".join([*lines, f"Latents: {output}"])
