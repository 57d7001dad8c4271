"""Encoded clips in, adapters out: training on Ray Train, from its driver's side.

The run's state lies in the output, committed whole; Ray Train starts the ranks, joins them, and
starts them again after one is lost. Nothing but the output is needed to go on.
"""

import json
import posixpath
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.train
import yaml
from ray.train.torch import TorchConfig, TorchTrainer
from rich.console import Console

from vidgen_ray.addresses import read_address
from vidgen_ray.cluster.connect import connected
from vidgen_ray.cluster.signals import signals_call
from vidgen_ray.config import Config, Dtype, SamplePrompt
from vidgen_ray.encoding.shards import EncodedClips
from vidgen_ray.errors import ConfigError, EngineError, Interrupted, RequestError
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.image_io import MAX_IMAGE_BYTES
from vidgen_ray.model.checkpoint import Checkpoint, open_checkpoint
from vidgen_ray.model.lora import architecture_of
from vidgen_ray.model.lora_file import FINAL_NAME, WEIGHTS_NAME
from vidgen_ray.training.board import ask, make_board
from vidgen_ray.training.estimate import (
    Architecture,
    DeviceFacts,
    Estimate,
    estimate,
    refuse_too_large,
)
from vidgen_ray.training.journal import CSV_NAME, PLOT_NAME, Journal
from vidgen_ray.training.schedule import Plan
from vidgen_ray.training.state import FOLDER, StepMetrics, committed_states
from vidgen_ray.training.worker import WorkerJob, device_facts, train_worker
from vidgen_ray.validation.prompts import find_prompts, read_requests

RUN_NAME = "run.json"

_POLL_S = 0.3
_SAY_EVERY_S = 5.0
_DEVICE_WAIT_S = 600.0

# Of TrainingConfig: what decides the curve of a run, and so must stay as it was begun.
_DECISIVE = {
    "rank",
    "alpha",
    "targets",
    "learning_rate",
    "schedule",
    "warmup_steps",
    "num_epochs",
    "max_steps",
    "max_grad_norm",
    "optimizer",
    "adam_betas",
    "weight_decay",
    "ema_decay",
    "image_dropout",
    "prompt_dropout",
    "seed",
}


@dataclass(frozen=True)
class TrainingArguments:
    """What the user asked for. Addresses are local paths or anything fsspec opens."""

    latents: str
    output: str
    config: Config
    num_workers: int = 1
    ray_address: str | None = None


def run_training(arguments: TrainingArguments, console: Console) -> None:
    """Train to the end. The same call afterwards goes on from the last committed state.

    Raises ConfigError where it cannot fit or settings changed, DatasetError for bad latents,
    EngineError and ArtifactError for a run that could not go on, Interrupted for a signal.
    """
    config = arguments.config
    checkpoint = open_checkpoint(config.model)
    clips = EncodedClips(arguments.latents)
    _check_latents(clips, checkpoint)
    store = ArtifactStore(arguments.output)
    store.check_writable()
    store.clear_staging()
    plan = Plan(config.training, len(clips), max(1, arguments.num_workers))
    _refuse_changed(store, _decisive_settings(config, plan, clips, checkpoint))
    if store.read(f"{FINAL_NAME}/{WEIGHTS_NAME}") is not None:
        _say(console, f"{arguments.output} is trained already: {FINAL_NAME}/{WEIGHTS_NAME}")
        return
    arguments = replace(arguments, config=_with_samples(config, store))
    cluster = connected(arguments.ray_address) if arguments.num_workers else nullcontext()
    with cluster:
        _check_resources(arguments)
        facts = _device_facts(arguments)
        config = _with_dtype(config, facts.dtype)
        arguments = replace(arguments, config=_with_dtype(arguments.config, facts.dtype))
        settings = _decisive_settings(config, plan, clips, checkpoint)
        _refuse_changed(store, settings)  # now with the dtype of the workers
        needed = _estimate(arguments, facts, checkpoint, clips)
        _announce(plan, clips, needed, arguments, console)
        store.write("config.yaml", yaml.safe_dump(config.model_dump(mode="json")).encode())
        store.write(RUN_NAME, json.dumps(settings, indent=2).encode())
        journal = Journal(store, arguments.output, config.training.trackers, settings)
        try:
            _fit(arguments, journal, console)
        finally:
            journal.close()
    _say_result(journal.rows, plan, needed, arguments, console)


def _fit(arguments: TrainingArguments, journal: Journal, console: Console) -> None:
    """Run the ranks, tell of their steps, and stop them at a signal."""
    board = make_board(arguments.num_workers)
    job = WorkerJob(arguments.latents, arguments.output, arguments.config, board)
    training = arguments.config.training
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(timeout_s=training.collective_timeout_s),
        scaling_config=ray.train.ScalingConfig(
            num_workers=arguments.num_workers,
            use_gpu=training.num_gpus_per_worker > 0,
            resources_per_worker=_resources(training.num_cpus_per_worker, training),
        ),
        run_config=ray.train.RunConfig(
            # Where Ray keeps its own notes; storage that all nodes see, as the output must be.
            storage_path=f"{arguments.output.rstrip('/')}/{FOLDER}/ray",
            name=str(time.time_ns()),
            failure_config=ray.train.FailureConfig(max_failures=training.max_failures),
        ),
    )
    told = _Teller(journal, console)
    # In a thread of its own, so that Ray Train leaves signals to us.
    with ThreadPoolExecutor(1) as pool, _signals_stop(board) as stopped_by:
        fitting: Future[Any] = pool.submit(trainer.fit)
        try:
            while not fitting.done():
                told.tell(*ask(board, "take"))
                time.sleep(_POLL_S)
            told.tell(*ask(board, "take"))
        except BaseException:
            ask(board, "stop")  # or leaving would wait for the whole run
            raise
        error = ask(board, "error")
        failure = fitting.exception()
    if error is not None:
        raise error
    if failure is not None:
        raise EngineError(
            f"training ended: {_cause(failure)}; the same command goes on from the last checkpoint"
        ) from failure
    if stopped_by:
        raise Interrupted(stopped_by[0])


def _resources(num_cpus: float, training: Any) -> dict[str, float]:
    resources = {"CPU": num_cpus}
    if training.num_gpus_per_worker:
        resources["GPU"] = training.num_gpus_per_worker
    return resources


class _Teller:
    """Puts steps into the journal, and now and then on the console."""

    def __init__(self, journal: Journal, console: Console) -> None:
        self._journal = journal
        self._console = console
        self._said_at = 0.0

    def tell(
        self,
        restored: list[StepMetrics] | None,
        steps: list[StepMetrics],
        words: list[str],
    ) -> None:
        if restored is not None:
            self._journal.restore(restored)
            if restored:
                _say(self._console, f"going on after step {restored[-1].step}")
        for metrics in steps:
            self._journal.add(metrics)
        if steps and time.monotonic() - self._said_at > _SAY_EVERY_S:
            self._said_at = time.monotonic()
            last = steps[-1]
            vram = f", {last.peak_vram_gb:.1f} GB" if last.peak_vram_gb is not None else ""
            _say(
                self._console,
                f"step {last.step} (epoch {last.epoch}): loss {last.loss:.4f}, "
                f"{last.step_s:.2f} s a step{vram}",
            )
        for line in words:
            _say(self._console, line)


@contextmanager
def _signals_stop(board: Any) -> Iterator[list[int]]:
    """Within the context SIGTERM and SIGINT ask the ranks to commit and leave; a second one ends
    this process at once. The list that is yielded holds the signal that came."""
    came: list[int] = []

    def stop(number: int) -> None:
        if came:
            raise Interrupted(number)
        came.append(number)
        stopping = board.stop
        getattr(stopping, "remote", stopping)()

    with signals_call(stop):
        yield came


def _with_samples(config: Config, store: ArtifactStore) -> Config:
    """The configuration with the prompts of the file that `training.samples` may name.

    Their images go into the store, where every worker finds them. Raises RequestError.
    """
    training = config.training
    if not isinstance(training.samples, str):
        return config
    address = find_prompts(training.samples)
    found, _ = read_requests(address, config)
    if found.problems:
        raise RequestError(f"training.samples: {address}: {found.problems[0]}")
    samples = []
    for index, job in enumerate(found.requests[: training.num_samples]):
        request = job.request
        data = read_address(request.image, field="training.samples", max_bytes=MAX_IMAGE_BYTES)
        name = f"samples/image-{index + 1}{posixpath.splitext(request.image)[1]}"
        store.write(name, data)
        image, seed = store.address_of(name), request.seed or 0
        samples.append(SamplePrompt(image=image, prompt=request.prompt, seed=seed))
    return config.model_copy(update={"training": training.model_copy(update={"samples": samples})})


def _check_latents(clips: EncodedClips, checkpoint: Checkpoint) -> None:
    """Refuse latents of another model or shape. Raises ConfigError."""
    made = clips.settings
    for part in ("vae", "text_encoder"):
        if getattr(made, part) != checkpoint.part_fingerprint(part):
            raise ConfigError(
                f"latents: were encoded with another {part} ({getattr(made, part)}) than that of "
                f"{checkpoint.source} ({checkpoint.part_fingerprint(part)}); encode again with the "
                "configuration you train with"
            )
    shape = {"num_frames": checkpoint.num_frames, "height": checkpoint.height}
    for field, wanted in {**shape, "width": checkpoint.width}.items():
        if getattr(made, field) != wanted:
            raise ConfigError(
                f"latents: {field} must be {wanted} for {checkpoint.source}, got "
                f"{getattr(made, field)}; encode again with generation.{field}={wanted}"
            )


def _decisive_settings(
    config: Config, plan: Plan, clips: EncodedClips, checkpoint: Checkpoint
) -> dict[str, Any]:
    """What decides the curve of the run; as many workers as you like share it."""
    return {
        **{
            f"training.{name}": value
            for name, value in config.training.model_dump(mode="json", include=_DECISIVE).items()
        },
        "samples a step": plan.global_batch,
        "clips": clips.fingerprint,
        "num_clips": len(clips),
        "model.dtype": config.model.dtype,
        "transformer": checkpoint.part_fingerprint("transformer"),
    }


def _refuse_changed(store: ArtifactStore, settings: dict[str, Any]) -> None:
    data = store.read(RUN_NAME)
    if data is None or not committed_states(store):
        return  # a run that never came so far leaves nothing to bend
    before = json.loads(data)
    undecided = {"model.dtype"} if settings["model.dtype"] == "auto" else set()
    changed = [
        f"{name} was {before.get(name)}, is {settings.get(name)}"
        for name in sorted({*before, *settings} - undecided)
        if before.get(name) != settings.get(name)
    ]
    if changed:
        raise ConfigError(
            f"output: {store.address} holds a run with other settings ({'; '.join(changed)}); use "
            "another --output, or go on with the settings of its config.yaml"
        )


def _check_resources(arguments: TrainingArguments) -> None:
    """Refuse to wait for what this machine will never have. Raises ConfigError."""
    needed = arguments.num_workers * arguments.config.training.num_gpus_per_worker
    if arguments.num_workers == 0 or arguments.ray_address not in {None, "local"}:
        return
    resources = ray.cluster_resources()
    there = resources.get("GPU", 0)
    if needed > there:
        raise ConfigError(
            f"num_workers: {arguments.num_workers} need {needed:g} GPUs, but this machine has "
            f"{there:g}; use --config training/lora_nano for the small model on the CPU, or name a "
            "cluster with --address"
        )
    num_cpus = arguments.num_workers * arguments.config.training.num_cpus_per_worker
    if num_cpus > resources.get("CPU", 0):
        raise ConfigError(
            f"num_workers: {arguments.num_workers} need {num_cpus:g} CPUs, but this machine has "
            f"{resources.get('CPU', 0):g}; use fewer workers, or name a cluster with --address"
        )


def _device_facts(arguments: TrainingArguments) -> DeviceFacts:
    """The device of a worker, asked there. Raises ConfigError."""
    config, training = arguments.config, arguments.config.training
    if not arguments.num_workers:
        return device_facts(config, 1)
    task = ray.remote(num_cpus=training.num_cpus_per_worker, num_gpus=training.num_gpus_per_worker)(
        device_facts
    )
    try:
        facts: DeviceFacts = ray.get(
            task.remote(config, arguments.num_workers), timeout=_DEVICE_WAIT_S
        )
    except ray.exceptions.GetTimeoutError:
        raise ConfigError(
            f"training.num_gpus_per_worker: the cluster had no free worker with "
            f"{training.num_gpus_per_worker:g} GPUs for {_DEVICE_WAIT_S:g} s; add nodes, or "
            "end what holds them"
        ) from None
    return facts


def _with_dtype(config: Config, dtype: Dtype) -> Config:
    """With the dtype that `auto` is on a worker, so that all workers train in the same one."""
    return config.model_copy(update={"model": config.model.model_copy(update={"dtype": dtype})})


def _estimate(
    arguments: TrainingArguments, facts: DeviceFacts, checkpoint: Checkpoint, clips: EncodedClips
) -> Estimate:
    """Time and memory of a step on the device of a worker. Raises ConfigError if it cannot fit."""
    training = arguments.config.training
    _, num_latent_frames, height, width = clips.shape
    sizes = architecture_of(checkpoint, training, num_latent_frames, height, width)
    needed = estimate(Architecture(**sizes), training, facts, max(1, arguments.num_workers))
    refuse_too_large(needed, facts, training)
    return needed


def _announce(
    plan: Plan,
    clips: EncodedClips,
    needed: Estimate,
    arguments: TrainingArguments,
    console: Console,
) -> None:
    workers = f"{arguments.num_workers} workers" if arguments.num_workers else "this process"
    hours = needed.step_s * plan.num_steps / 3600
    _say(
        console,
        f"{len(clips)} clips, {plan.num_epochs} epochs, {plan.num_steps} steps of "
        f"{plan.global_batch} samples on {workers}\n"
        f"estimated for each: {needed.memory_gb:.1f} GB (weights {needed.weights_gb:.1f}, adapter "
        f"and optimizer {needed.adapter_gb:.1f}, activations {needed.activations_gb:.1f}), "
        f"{needed.step_flop / 1e12:.1f} TFLOP and {needed.step_s:.2f} s a step, {hours:.1f} h",
    )


def _say_result(
    rows: list[StepMetrics],
    plan: Plan,
    needed: Estimate,
    arguments: TrainingArguments,
    console: Console,
) -> None:
    if rows:
        step_s = sorted(row.step_s for row in rows)[len(rows) // 2]
        vram = max((row.peak_vram_gb for row in rows if row.peak_vram_gb is not None), default=None)
        memory = f"{vram:.1f} GB (estimated {needed.memory_gb:.1f}), " if vram is not None else ""
        tenth = max(1, len(rows) // 10)
        first = sum(row.loss for row in rows[:tenth]) / tenth
        last = sum(row.loss for row in rows[-tenth:]) / tenth
        _say(
            console,
            f"measured: {memory}{step_s:.2f} s a step (estimated {needed.step_s:.2f}), "
            f"{needed.step_flop / step_s / 1e12:.2f} TFLOP/s a worker\n"
            f"loss: {first:.4f} in the first tenth, {last:.4f} in the last; see {CSV_NAME} and "
            f"{PLOT_NAME}",
        )
    _say(console, f"Adapter: {arguments.output.rstrip('/')}/{FINAL_NAME}")


def _cause(failure: BaseException) -> str:
    """The first worker's error in one line, where Ray Train says which."""
    failures = getattr(failure, "worker_failures", None) or {}
    for rank, error in sorted(failures.items()):
        lines = str(error).strip().splitlines()
        return f"worker {rank}: {lines[-1] if lines else type(error).__name__}"
    lines = str(failure).strip().splitlines()
    return lines[0] if lines else type(failure).__name__


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
