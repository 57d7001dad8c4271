"""The driver of `vidgen train`: from encoded clips to adapters on Ray Train."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import ray.train
import yaml
from ray.train.torch import TorchConfig, TorchTrainer
from rich.console import Console

from vidgen_ray.addresses import one_line
from vidgen_ray.cluster.connect import connected
from vidgen_ray.cluster.signals import signals_call
from vidgen_ray.config import Config, Dtype
from vidgen_ray.encoding.shards import EncodedClips
from vidgen_ray.errors import EngineError, Interrupted
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.model.checkpoint import open_checkpoint
from vidgen_ray.model.lora_file import FINAL_NAME, WEIGHTS_NAME
from vidgen_ray.training.channel import call, open_channel
from vidgen_ray.training.metrics_log import MetricsLog
from vidgen_ray.training.preflight import (
    RUN_NAME,
    check_latents,
    check_resources,
    curve_settings,
    estimate_cost,
    measure_worker_device,
    refuse_changed_settings,
    with_sample_prompts,
)
from vidgen_ray.training.reporting import ProgressReporter, describe_plan, describe_result, show
from vidgen_ray.training.run import RankArguments, TrainingArguments
from vidgen_ray.training.schedule import TrainingSchedule
from vidgen_ray.training.state import FOLDER, num_committed_steps
from vidgen_ray.training.worker import train_worker

_POLL_S = 0.3


def run_training(arguments: TrainingArguments, console: Console) -> None:
    """Train to the end; another call resumes from the last committed state.

    Raises ConfigError if it cannot fit, a tracker cannot start or settings changed, DatasetError
    for bad latents, EngineError and ArtifactError for a run that cannot continue, Interrupted for
    a signal.
    """
    config = arguments.config
    checkpoint = open_checkpoint(config.model)
    clips = EncodedClips(arguments.latents)
    check_latents(clips, checkpoint)
    store = ArtifactStore(arguments.output)
    store.check_writable()
    store.clear_staging()
    schedule = TrainingSchedule(config.training, len(clips), max(1, arguments.num_workers))
    refuse_changed_settings(store, curve_settings(config, schedule, clips, checkpoint))
    if store.read(f"{FINAL_NAME}/{WEIGHTS_NAME}") is not None:
        show(console, f"{arguments.output} is already trained: {FINAL_NAME}/{WEIGHTS_NAME}")
        return
    arguments = replace(arguments, config=with_sample_prompts(config, store))
    with connected(arguments.ray_address) if arguments.num_workers else nullcontext():
        check_resources(arguments)
        device = measure_worker_device(arguments)
        config = _with_dtype(config, device.dtype)
        arguments = replace(arguments, config=_with_dtype(arguments.config, device.dtype))
        settings = curve_settings(config, schedule, clips, checkpoint)
        refuse_changed_settings(store, settings)  # now with the dtype of the workers
        cost = estimate_cost(arguments, device, checkpoint, clips)
        show(console, describe_plan(schedule, len(clips), cost, arguments.num_workers))
        trackers, num_done = config.training.trackers, num_committed_steps(store)
        log = MetricsLog(store, arguments.output, trackers, settings, num_done)
        store.write("config.yaml", yaml.safe_dump(config.model_dump(mode="json")).encode())
        store.write(RUN_NAME, json.dumps(settings, indent=2).encode())
        try:
            _fit(arguments, ProgressReporter(log, console))
        finally:
            log.close()
    show(console, describe_result(log.rows, cost, arguments.output))


def _with_dtype(config: Config, dtype: Dtype) -> Config:
    """With the dtype that `auto` is on a worker, so that all workers train in the same one."""
    return config.model_copy(update={"model": config.model.model_copy(update={"dtype": dtype})})


def _fit(arguments: TrainingArguments, reporter: ProgressReporter) -> None:
    """Run the ranks, report their steps, and stop them at a signal."""
    channel = open_channel(arguments.num_workers)
    trainer = _trainer(arguments, channel)
    # In another thread, because Ray Train would handle signals in the main one.
    with ThreadPoolExecutor(1) as pool, _signals_stop(channel) as signals:
        fitting: Future[Any] = pool.submit(trainer.fit)
        try:
            while not fitting.done():
                reporter.report(*call(channel, "drain"))
                time.sleep(_POLL_S)
            reporter.report(*call(channel, "drain"))
        except BaseException:
            call(channel, "stop")  # otherwise the pool would wait for the end of the run
            raise
        error = call(channel, "error")
        failure = fitting.exception()
    if error is not None:
        raise error
    if failure is not None:
        raise EngineError(
            f"training ended: {_cause(failure)}; the same command resumes from the last checkpoint"
        ) from failure
    if signals:
        raise Interrupted(signals[0])


def _trainer(arguments: TrainingArguments, channel: Any) -> TorchTrainer:
    training = arguments.config.training
    resources = {"CPU": training.num_cpus_per_worker, "GPU": training.num_gpus_per_worker}
    rank_arguments = RankArguments(arguments.latents, arguments.output, arguments.config, channel)
    return TorchTrainer(
        train_worker,
        train_loop_config={"arguments": rank_arguments},
        torch_config=TorchConfig(timeout_s=training.collective_timeout_s),
        scaling_config=ray.train.ScalingConfig(
            num_workers=arguments.num_workers,
            use_gpu=training.num_gpus_per_worker > 0,
            resources_per_worker={name: amount for name, amount in resources.items() if amount},
        ),
        run_config=ray.train.RunConfig(
            # Ray's own files need storage that all nodes share, as the output does.
            storage_path=f"{arguments.output.rstrip('/')}/{FOLDER}/ray",
            name=str(time.time_ns()),
            failure_config=ray.train.FailureConfig(max_failures=training.max_failures),
        ),
    )


@contextmanager
def _signals_stop(channel: Any) -> Iterator[list[int]]:
    """Within the context SIGTERM and SIGINT ask the ranks to commit and exit.

    A second signal ends this process at once. Yields a list that receives the first signal.
    """
    received: list[int] = []

    def stop(number: int) -> None:
        if received:
            raise Interrupted(number)
        received.append(number)
        stopping = channel.stop
        getattr(stopping, "remote", stopping)()

    with signals_call(stop):
        yield received


def _cause(failure: BaseException) -> str:
    """The first worker's error in one line, if Ray Train reports one."""
    failures = getattr(failure, "worker_failures", None) or {}
    for rank, error in sorted(failures.items()):
        lines = str(error).strip().splitlines()
        return f"worker {rank}: {lines[-1] if lines else type(error).__name__}"
    return one_line(failure)
