"""Checks of a training run before it starts: latents, settings, resources, memory and time."""

import json
import posixpath
from typing import Any

import ray

from vidgen_ray.addresses import read_address
from vidgen_ray.config import Config, SamplePrompt
from vidgen_ray.encoding.shards import EncodedClips
from vidgen_ray.errors import ConfigError, RequestError
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.image_io import MAX_IMAGE_BYTES
from vidgen_ray.model.checkpoint import Checkpoint
from vidgen_ray.model.lora import architecture_of
from vidgen_ray.training.estimate import (
    DeviceFacts,
    StepEstimate,
    TransformerShape,
    estimate_step,
    refuse_too_large,
)
from vidgen_ray.training.run import TrainingArguments
from vidgen_ray.training.schedule import TrainingSchedule
from vidgen_ray.training.state import committed_states
from vidgen_ray.training.worker import device_facts
from vidgen_ray.validation.prompts import find_prompts, read_requests

RUN_NAME = "run.json"

_DEVICE_WAIT_S = 600.0

# Fields of TrainingConfig that determine the training curve and must not change on resuming.
_CURVE_FIELDS = {
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


def check_latents(clips: EncodedClips, checkpoint: Checkpoint) -> None:
    """Raise ConfigError for latents of another model or shape."""
    encoded = clips.settings
    for part in ("vae", "text_encoder"):
        if getattr(encoded, part) != checkpoint.part_fingerprint(part):
            raise ConfigError(
                f"latents: were encoded with another {part} ({getattr(encoded, part)}) than that "
                f"of {checkpoint.source} ({checkpoint.part_fingerprint(part)}); encode again with "
                "the configuration you train with"
            )
    shape = {"num_frames": checkpoint.num_frames, "height": checkpoint.height}
    for field, wanted in {**shape, "width": checkpoint.width}.items():
        if getattr(encoded, field) != wanted:
            raise ConfigError(
                f"latents: {field} must be {wanted} for {checkpoint.source}, got "
                f"{getattr(encoded, field)}; encode again with generation.{field}={wanted}"
            )


def curve_settings(
    config: Config, schedule: TrainingSchedule, clips: EncodedClips, checkpoint: Checkpoint
) -> dict[str, Any]:
    """The settings that determine the training curve; the number of workers is not one."""
    training = config.training.model_dump(mode="json", include=_CURVE_FIELDS)
    return {
        **{f"training.{name}": value for name, value in training.items()},
        "samples a step": schedule.global_batch,
        "clips": clips.fingerprint,
        "num_clips": len(clips),
        "model.dtype": config.model.dtype,
        "transformer": checkpoint.part_fingerprint("transformer"),
    }


def refuse_changed_settings(store: ArtifactStore, settings: dict[str, Any]) -> None:
    """Raise ConfigError if the output holds a state that was trained with other settings.

    A dtype that is still `auto` is not compared: only a worker can resolve it.
    """
    data = store.read(RUN_NAME)
    if data is None or not committed_states(store):
        return
    before = json.loads(data)
    unresolved = {"model.dtype"} if settings["model.dtype"] == "auto" else set()
    changed = [
        f"{name} was {before.get(name)}, is {settings.get(name)}"
        for name in sorted({*before, *settings} - unresolved)
        if before.get(name) != settings.get(name)
    ]
    if changed:
        raise ConfigError(
            f"output: {store.address} holds a run with other settings ({'; '.join(changed)}); use "
            "another --output, or resume it with the settings of its config.yaml"
        )


def with_sample_prompts(config: Config, store: ArtifactStore) -> Config:
    """The configuration with the prompts of the file that `training.samples` may name.

    Their images are copied into the store, where every worker can read them. Raises RequestError.
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


def check_resources(arguments: TrainingArguments) -> None:
    """Raise ConfigError for GPUs or CPUs that a Ray of this machine alone will never have."""
    if arguments.num_workers == 0 or arguments.ray_address not in {None, "local"}:
        return
    resources, training = ray.cluster_resources(), arguments.config.training
    num_gpus = arguments.num_workers * training.num_gpus_per_worker
    num_cpus = arguments.num_workers * training.num_cpus_per_worker
    if num_gpus > resources.get("GPU", 0):
        raise ConfigError(
            f"num_workers: {arguments.num_workers} need {num_gpus:g} GPUs, but this machine has "
            f"{resources.get('GPU', 0):g}; use --config training/lora_nano for the small model on "
            "the CPU, or name a cluster with --address"
        )
    if num_cpus > resources.get("CPU", 0):
        raise ConfigError(
            f"num_workers: {arguments.num_workers} need {num_cpus:g} CPUs, but this machine has "
            f"{resources.get('CPU', 0):g}; use fewer workers, or name a cluster with --address"
        )


def estimate_cost(
    arguments: TrainingArguments,
    device: DeviceFacts,
    checkpoint: Checkpoint,
    clips: EncodedClips,
) -> StepEstimate:
    """The cost of a step on the device of a worker. Raises ConfigError if it does not fit."""
    training = arguments.config.training
    _, num_latent_frames, height, width = clips.shape
    sizes = architecture_of(checkpoint, training, num_latent_frames, height, width)
    num_workers = max(1, arguments.num_workers)
    cost = estimate_step(TransformerShape(**sizes), training, device, num_workers)
    refuse_too_large(cost, device, training)
    return cost


def measure_worker_device(arguments: TrainingArguments) -> DeviceFacts:
    """The device of a worker, measured there: on the cluster as a task with its resources."""
    training = arguments.config.training
    if not arguments.num_workers:
        return device_facts(arguments.config, 1)
    task = ray.remote(num_cpus=training.num_cpus_per_worker, num_gpus=training.num_gpus_per_worker)(
        device_facts
    )
    measured = task.remote(arguments.config, arguments.num_workers)
    try:
        facts: DeviceFacts = ray.get(measured, timeout=_DEVICE_WAIT_S)
    except ray.exceptions.GetTimeoutError:
        raise ConfigError(
            "training.num_gpus_per_worker: the cluster had no free worker with "
            f"{training.num_gpus_per_worker:g} GPUs for {_DEVICE_WAIT_S:g} s; add nodes, or end "
            "what holds them"
        ) from None
    return facts
