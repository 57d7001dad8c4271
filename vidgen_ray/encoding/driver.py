"""The driver of `vidgen encode`: from metadata to latents and prompt embeddings on Ray Data."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import ray
import ray.data
import yaml
from ray.data import ActorPoolStrategy, DataContext
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vidgen_ray.cluster.board import start_board
from vidgen_ray.cluster.connect import connected, pool_size
from vidgen_ray.cluster.metrics import EncodingMetrics
from vidgen_ray.cluster.rows import iter_rows_as_ready
from vidgen_ray.cluster.signals import signals_raise
from vidgen_ray.config import Config, EncodingConfig
from vidgen_ray.datasets.metadata import read_metadata
from vidgen_ray.encoding.result import (
    EncodingSummary,
    clip_entries,
    describe_result,
    group_of,
    skip_reason,
    summarise,
)
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
    EncodeClips,
    EncodePrompts,
    EncodingRun,
    SpanRow,
    first_row,
    read_clip,
    write_clips,
    write_prompts,
)
from vidgen_ray.errors import DatasetError, EngineError
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.model.checkpoint import Checkpoint, open_checkpoint
from vidgen_ray.schema import Clip

EXIT_COMPLETE = 0
EXIT_ROWS_LEFT_OUT = 3


@dataclass(frozen=True)
class EncodingArguments:
    """What the user asked for. Addresses are local paths or fsspec addresses."""

    metadata: str
    output: str
    config: Config
    ray_address: str | None = None


def run_encoding(arguments: EncodingArguments, console: Console) -> int:
    """Encode what is missing and return the exit code; another call resumes.

    Prompts are encoded first, then clips, so that text encoder and VAE each have the GPUs to
    themselves. Raises DatasetError, ConfigError, ArtifactError and EngineError, Interrupted for a
    signal.
    """
    start = time.perf_counter()
    config = arguments.config
    clips = list(read_metadata(arguments.metadata))
    if not clips:
        raise DatasetError(f"metadata: {arguments.metadata} has no clip; import some first")
    store = ArtifactStore(arguments.output)
    store.check_writable()
    store.clear_staging()
    settings = encoding_settings(config, open_checkpoint(config.model, weights=True))
    _print(console, f"{len(clips)} rows; starting Ray")
    wanted = [clip for clip in clips if not skip_reason(clip, config)]
    with connected(arguments.ray_address), signals_raise():
        prompts_start = time.perf_counter()
        truncated = _encode_prompts(wanted, settings, arguments, console)
        prompts_wall_s = time.perf_counter() - prompts_start
        groups = {group_of(clip): clip for clip in wanted}
        rows = list(_encode_clips(groups, settings, arguments, console))
    by_group = {row["group"]: row for row in rows}
    entries = clip_entries(clips, config, by_group, settings, truncated)
    summary = summarise(entries, rows, time.perf_counter() - start, prompts_wall_s)
    _write_results(store, config, settings, entries, summary)
    _print(console, describe_result(summary, entries, arguments.output))
    return EXIT_ROWS_LEFT_OUT if summary.rejected or summary.skipped else EXIT_COMPLETE


def encoding_settings(config: Config, checkpoint: Checkpoint) -> EncodingSettings:
    """The settings of a configuration and a checkpoint that determine the tensors."""
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


def _write_results(
    store: ArtifactStore,
    config: Config,
    settings: EncodingSettings,
    entries: Sequence[ClipEntry],
    summary: EncodingSummary,
) -> None:
    store.write("config.yaml", yaml.safe_dump(config.model_dump(mode="json")).encode())
    store.write(SETTINGS_NAME, settings.model_dump_json(indent=2).encode())
    store.write(CLIPS_NAME, entries_bytes(entries))  # with it the folder can be trained on
    store.write("summary.json", summary.model_dump_json(indent=2).encode())


def _encode_prompts(
    clips: Sequence[Clip],
    settings: EncodingSettings,
    arguments: EncodingArguments,
    console: Console,
) -> set[str]:
    """Encode the missing prompts; return those that are longer than the model reads."""
    prompts = sorted({EMPTY_PROMPT} | {clip.prompt for clip in clips})
    by_key = {settings.prompt_key(prompt): prompt for prompt in prompts}
    committed = read_keys(arguments.output, PROMPTS)
    rows = [{"key": key, "prompt": text} for key, text in by_key.items() if key not in committed]
    if rows:
        encoding = arguments.config.encoding
        batch, num_batches = encoding.prompts_per_batch, -(-len(rows) // encoding.prompts_per_batch)
        dataset = (
            ray.data.from_items(rows, override_num_blocks=num_batches)
            .map_batches(
                EncodePrompts,
                fn_constructor_args=(arguments.config,),
                batch_size=batch,
                batch_format="pyarrow",
                **_pool(encoding, num_batches),
            )
            .map_batches(
                write_prompts,
                fn_args=(arguments.output,),
                batch_size=8 * batch,
                batch_format="pyarrow",
            )
        )
        for _ in _rows_with_bar(dataset, len(rows), "prompts", console):
            pass
    return {by_key[key] for key in read_long_prompts(arguments.output) if key in by_key}


def _encode_clips(
    groups: Mapping[str, Clip],
    settings: EncodingSettings,
    arguments: EncodingArguments,
    console: Console,
) -> Iterator[SpanRow]:
    """Encode the missing clips; yield a row for each group, including those encoded before."""
    if not groups:
        return
    config = arguments.config
    keys = ray.put(frozenset(read_keys(arguments.output, LATENTS)))
    run = EncodingRun(config, settings, arguments.output, keys, start_board())
    rows = [first_row(group, clip) for group, clip in groups.items()]
    dataset = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map(read_clip, fn_args=(run,), num_cpus=config.encoding.num_cpus_per_decode)
        .map(
            EncodeClips,
            fn_constructor_args=(run,),
            max_concurrency=2,  # calls are serial, but the next clip is fetched during a call
            **_pool(config.encoding, len(rows)),
        )
        .map_batches(
            write_clips,
            fn_args=(run,),
            batch_size=config.encoding.clips_per_shard,
            batch_format="pyarrow",
            num_cpus=0.5,
        )
    )
    metrics = EncodingMetrics()
    for raw in _rows_with_bar(dataset, len(rows), "clips", console):
        row = cast(SpanRow, raw)
        if row["fatal"]:
            raise EngineError(row["fatal"])
        outcome = "rejected" if row["reason"] else "reused" if row["reused"] else "encoded"
        seconds = {"decode": row["decode_s"], "encode": row["encode_s"]}
        metrics.done(outcome, {name: value for name, value in seconds.items() if value})
        yield row


def _pool(encoding: EncodingConfig, num_tasks: int) -> dict[str, Any]:
    """Ray Data's arguments for a stage whose workers hold a part of the model."""
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


def _rows_with_bar(
    dataset: ray.data.Dataset, total: int, name: str, console: Console
) -> Iterator[dict[str, Any]]:
    """The rows as they are ready, with a progress bar. Raises EngineError if Ray ends the run."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(name, total=total)
        try:
            for row in iter_rows_as_ready(dataset):
                progress.advance(task)
                yield row
        except ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise EngineError(
                f"Ray ended the run: {lines[-1]}; run the same command again: committed shards are "
                "kept"
            ) from error


def _print(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
