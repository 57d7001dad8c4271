"""Metadata in, latents and prompt embeddings out: encoding on Ray Data, from its driver's side.

Two passes, prompts then clips, so that each has the GPUs to itself. What a pass makes is committed
in shards, found again by key: a rerun encodes what is missing.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
import yaml
from ray.data import ActorPoolStrategy, DataContext
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vidgen_ray.cluster.board import start_board
from vidgen_ray.cluster.connect import connected, pool_size
from vidgen_ray.cluster.metrics import EncodingMetrics
from vidgen_ray.cluster.signals import signals_raise
from vidgen_ray.config import Config, EncodingConfig, Section
from vidgen_ray.datasets.metadata import read_metadata
from vidgen_ray.encoding.shards import (
    CLIPS_NAME,
    EMPTY_PROMPT,
    LATENTS,
    PROMPTS,
    SETTINGS_NAME,
    ClipEntry,
    EncodingSettings,
    entries_bytes,
    read_keys,
    read_long_prompts,
)
from vidgen_ray.encoding.stages import (
    ClipStage,
    EncodeClips,
    EncodePrompts,
    Row,
    first_row,
    prepare,
    write_clips,
    write_prompts,
)
from vidgen_ray.errors import DatasetError, EngineError
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.model.checkpoint import Checkpoint, open_checkpoint
from vidgen_ray.schema import Clip

EXIT_ALL = 0
EXIT_NEEDS_EYES = 3

_MAX_REASONS_SHOWN = 10


@dataclass(frozen=True)
class EncodingArguments:
    """What the user asked for. Addresses are local paths or anything fsspec opens."""

    metadata: str
    output: str
    config: Config
    ray_address: str | None = None


class EncodingSummary(Section):
    """One run in figures: `summary.json`. Counts are of metadata rows, seconds of medians."""

    encoded: int
    reused: int
    skipped: int
    rejected: int
    wall_s: float
    prompts_wall_s: float  # of all prompts, with the start of their workers
    clips_per_s: float | None  # VAE encodings after a quarter of them, when all workers run
    decode_s: float | None
    encode_s: float | None


def run_encoding(arguments: EncodingArguments, console: Console) -> int:
    """Encode what is missing; the exit code. The same call afterwards goes on where it stopped.

    Raises DatasetError, ConfigError, ArtifactError and EngineError, Interrupted for a signal.
    """
    start = time.perf_counter()
    config = arguments.config
    clips = list(read_metadata(arguments.metadata))
    if not clips:
        raise DatasetError(f"metadata: {arguments.metadata} holds no clip; import some first")
    store = ArtifactStore(arguments.output)
    store.check_writable()
    store.clear_staging()
    checkpoint = open_checkpoint(config.model, weights=True)
    settings = encoding_settings(config, checkpoint)
    console.print(f"{len(clips)} rows; starting Ray", highlight=False, markup=False, soft_wrap=True)
    with connected(arguments.ray_address), signals_raise():
        prompts_start = time.perf_counter()
        truncated = _encode_prompts(clips, settings, arguments, console)
        prompts_wall_s = time.perf_counter() - prompts_start
        groups = _groups(clips, config)
        rows = list(_encode_clips(groups, settings, arguments, console))
    entries = _entries(clips, config, {row["group"]: row for row in rows}, settings, truncated)
    store.write("config.yaml", yaml.safe_dump(config.model_dump(mode="json")).encode())
    store.write(SETTINGS_NAME, settings.model_dump_json(indent=2).encode())
    store.write(CLIPS_NAME, entries_bytes(entries))  # last: with it the folder can be trained on
    summary = _summary(entries, rows, time.perf_counter() - start, prompts_wall_s)
    store.write("summary.json", summary.model_dump_json(indent=2).encode())
    _say_result(summary, entries, arguments, console)
    return EXIT_ALL if not summary.rejected and not summary.skipped else EXIT_NEEDS_EYES


def encoding_settings(config: Config, checkpoint: Checkpoint) -> EncodingSettings:
    """What decides the tensors, of a configuration and a checkpoint."""
    shape = config.generation
    return EncodingSettings(
        num_frames=shape.num_frames,
        height=shape.height,
        width=shape.width,
        fps=shape.fps,
        image_fit=shape.image_fit,
        dtype=config.encoding.dtype,
        num_noised_images=config.encoding.num_noised_images,
        vae_tiling=config.model.vae_tiling is True,
        vae=checkpoint.part_fingerprint("vae"),
        text_encoder=checkpoint.part_fingerprint("text_encoder"),
        tokenizer=checkpoint.part_fingerprint("tokenizer"),
    )


def _group_of(clip: Clip) -> str:
    """Captions of one span of one video share its encoding."""
    return repr((clip.video, clip.start_s, clip.end_s, clip.image))


def _why_skipped(clip: Clip, config: Config) -> str | None:
    if clip.missing:
        return clip.missing
    marks = set(clip.check.marks if clip.check else []) & set(config.encoding.skip_marks)
    return f"marked {', '.join(sorted(marks))}" if marks else None


def _groups(clips: Iterable[Clip], config: Config) -> dict[str, Clip]:
    return {_group_of(clip): clip for clip in clips if not _why_skipped(clip, config)}


def _encode_prompts(
    clips: list[Clip], settings: EncodingSettings, arguments: EncodingArguments, console: Console
) -> set[str]:
    """Encode the prompts that are missing; those that are longer than the model reads."""
    config = arguments.config
    wanted = {EMPTY_PROMPT} | {clip.prompt for clip in clips if not _why_skipped(clip, config)}
    by_key = {settings.prompt_key(prompt): prompt for prompt in sorted(wanted)}
    there = read_keys(arguments.output, PROMPTS)
    rows = [{"key": key, "prompt": text} for key, text in by_key.items() if key not in there]
    if rows:
        batch = config.encoding.prompts_per_batch
        dataset = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // batch)).map_batches(
            EncodePrompts,
            fn_constructor_args=(config,),
            batch_size=batch,
            batch_format="pyarrow",
            **_pool(config.encoding, -(-len(rows) // batch)),
        )
        dataset = dataset.map_batches(
            write_prompts,
            fn_args=(arguments.output,),
            batch_size=8 * batch,
            batch_format="pyarrow",
        )
        for _ in _with_bar(_rows(dataset), len(rows), "prompts", console):
            pass
    return {by_key[key] for key in read_long_prompts(arguments.output) if key in by_key}


def _encode_clips(
    groups: dict[str, Clip],
    settings: EncodingSettings,
    arguments: EncodingArguments,
    console: Console,
) -> Iterator[Row]:
    """Encode the clips that are missing; a row a group, those that were there already as well."""
    if not groups:
        return
    config = arguments.config
    there = frozenset(read_keys(arguments.output, LATENTS))
    stage = ClipStage(config, settings, arguments.output, ray.put(there), start_board())
    rows = [first_row(group, clip) for group, clip in groups.items()]
    dataset = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map(prepare, fn_args=(stage,), num_cpus=config.encoding.num_cpus_per_decode)
        .map(
            EncodeClips,
            fn_constructor_args=(stage,),
            max_concurrency=2,  # Ray calls it singly, and fetches the next clip beside the call
            **_pool(config.encoding, len(rows)),
        )
        .map_batches(
            write_clips,
            fn_args=(stage,),
            batch_size=config.encoding.clips_per_shard,
            batch_format="pyarrow",
            num_cpus=0.5,
        )
    )
    metrics = EncodingMetrics()
    for row in _with_bar(_rows(dataset), len(rows), "clips", console):
        if row["fatal"]:
            raise EngineError(row["fatal"])
        outcome = "rejected" if row["reason"] else "reused" if row["reused"] else "encoded"
        seconds = {"decode": row["decode_s"], "encode": row["encode_s"]}
        metrics.done(outcome, {name: value for name, value in seconds.items() if value})
        yield row


def _pool(encoding: EncodingConfig, num_tasks: int) -> dict[str, Any]:
    """Resources of a stage with a part of the model."""
    context = DataContext.get_current()
    context.wait_for_min_actors_s = int(encoding.worker_start_timeout_s)
    pool = pool_size(
        encoding, num_tasks, reserved_cpus=encoding.num_cpus_per_decode, section="encoding"
    )
    return {
        "compute": ActorPoolStrategy(
            min_size=pool.least, initial_size=pool.initial, max_size=pool.most
        ),
        "num_cpus": encoding.num_cpus_per_worker,
        "num_gpus": encoding.num_gpus_per_worker or None,
    }


def _rows(dataset: ray.data.Dataset) -> Iterator[Row]:
    try:
        for table in dataset.iter_batches(
            batch_size=None, prefetch_batches=0, batch_format="pyarrow"
        ):
            yield from table.to_pylist()
    except ray.exceptions.RayError as error:
        cause = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise EngineError(
            f"Ray ended the run: {cause}; run the same command again: committed shards are kept"
        ) from error


def _with_bar(rows: Iterator[Row], total: int, name: str, console: Console) -> Iterator[Row]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(name, total=total)
        for row in rows:
            progress.advance(task)
            yield row


def _entries(
    clips: list[Clip],
    config: Config,
    rows: dict[str, Row],
    settings: EncodingSettings,
    truncated: set[str],
) -> list[ClipEntry]:
    """One line for each line of the metadata, in its order."""
    entries = []
    for clip in clips:
        common = {"id": clip.id, "prompt": clip.prompt, "source": clip.source}
        skipped = _why_skipped(clip, config)
        row = rows.get(_group_of(clip), {})
        if skipped or row["reason"]:
            outcome, reason = ("skipped", skipped) if skipped else ("rejected", row["reason"])
            entries.append(ClipEntry(**common, outcome=outcome, reason=reason))
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


def _summary(
    entries: list[ClipEntry], rows: list[Row], wall_s: float, prompts_wall_s: float
) -> EncodingSummary:
    counts = Counter(entry.outcome for entry in entries)
    made = [row for row in rows if row["encode_s"]]
    ends = sorted(row["encoded_at"] for row in made)
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
        decode_s=_median([row["decode_s"] for row in made]),
        encode_s=_median([row["encode_s"] for row in made]),
    )


def _median(values: list[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None


def _say_result(
    summary: EncodingSummary,
    entries: list[ClipEntry],
    arguments: EncodingArguments,
    console: Console,
) -> None:
    counts = ", ".join(
        f"{getattr(summary, name)} {name}" for name in ("encoded", "reused", "skipped", "rejected")
    )
    lines = [f"{len(entries)} rows: {counts}; {summary.wall_s:.0f} s"]
    reasons = [f"  {entry.id}: {entry.reason}" for entry in entries if entry.reason]
    lines += reasons[:_MAX_REASONS_SHOWN]
    if len(reasons) > _MAX_REASONS_SHOWN:
        lines.append(f"  ... and {len(reasons) - _MAX_REASONS_SHOWN} more in {CLIPS_NAME}")
    num_truncated = sum(entry.truncated for entry in entries)
    if num_truncated:
        lines.append(f"{num_truncated} prompts are longer than the model reads: see `truncated`")
    for terms in sorted({entry.source.terms or entry.source.licence for entry in entries}):
        lines.append(f"Terms:   {terms}")
    lines.append(f"Latents: {arguments.output}")
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
