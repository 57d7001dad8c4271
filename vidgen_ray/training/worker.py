"""One rank of a training run on Ray Train."""

from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from vidgen_ray.addresses import one_line
from vidgen_ray.cluster.metrics import TrainingMetrics
from vidgen_ray.config import Config
from vidgen_ray.encoding.shards import EncodedClips
from vidgen_ray.errors import ConfigError, VidgenError
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.model.checkpoint import Checkpoint, open_checkpoint
from vidgen_ray.model.device import (
    choose_device,
    describe_device,
    free_bytes,
    is_out_of_memory,
    matmul_flops,
    num_cores,
    resolve_dtype,
    use_cpu,
)
from vidgen_ray.model.encoders import latent_scales
from vidgen_ray.model.lora import LoraTransformer
from vidgen_ray.training.channel import call
from vidgen_ray.training.epoch_export import EpochExporter
from vidgen_ray.training.estimate import DeviceFacts
from vidgen_ray.training.loop import Trainer
from vidgen_ray.training.run import RankArguments
from vidgen_ray.training.samples import SampleBuilder
from vidgen_ray.training.schedule import TrainingSchedule
from vidgen_ray.training.state import StepMetrics


def train_worker(loop_config: dict[str, Any]) -> None:
    """Ray Train calls this on every rank, and again after a rank was lost."""
    arguments: RankArguments = loop_config["arguments"]
    if call(arguments.channel, "error") is not None:
        return  # another rank met an error that a retry would meet again; the driver raises it
    try:
        _train(arguments)
    except VidgenError as error:
        call(arguments.channel, "fail", error)
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        advice = ConfigError(
            "training: out of memory; use training.gradient_checkpointing=full, a smaller "
            f"batch_size or rank, or optimizer=adamw8bit ({one_line(error)[:200]})"
        )
        call(arguments.channel, "fail", advice)
        raise advice from error


def device_facts(config: Config, num_workers: int) -> DeviceFacts:
    """The device that a worker gets here; workers on a CPU share the machine's memory."""
    device = choose_device(config.model.device)
    shared = num_workers if device.type == "cpu" else 1
    dtype = resolve_dtype(config.model.dtype, device)
    flops = matmul_flops(device, getattr(torch, dtype)) / shared
    return DeviceFacts(describe_device(device), free_bytes(device) // shared, flops, dtype)


def _train(arguments: RankArguments) -> None:
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    device = _set_up_device(arguments.config, context.get_local_world_size())
    checkpoint = open_checkpoint(arguments.config.model)
    store = ArtifactStore(arguments.output)
    trainer = _build_trainer(arguments, checkpoint, store, device, rank, num_workers)
    metrics = TrainingMetrics(rank) if ray.is_initialized() else None

    def on_step(step: StepMetrics) -> bool:
        if metrics is not None:
            metrics.step(
                loss=step.loss,
                samples_per_s=step.samples_per_s,
                step_s=step.step_s,
                peak_vram_gb=step.peak_vram_gb,
            )
        return rank != 0 or bool(call(arguments.channel, "add_step", step))

    trainer.resume()
    if rank == 0:
        call(arguments.channel, "restore", trainer.history)
    exporter = EpochExporter(arguments, store, checkpoint, trainer, num_workers)
    if trainer.run(on_step, exporter.end_epoch) and rank == 0:
        exporter.finish()


def _set_up_device(config: Config, num_workers_here: int) -> torch.device:
    """This rank's GPU, or its share of the CPU's cores."""
    device = choose_device(config.model.device)
    if device.type == "cuda":
        device = ray.train.torch.get_device() if ray.is_initialized() else torch.device("cuda:0")
        torch.cuda.set_device(device)  # for this thread, which also generates samples
    else:
        use_cpu(max(1, num_cores() // num_workers_here), config.model.dtype)
    return device


def _build_trainer(
    arguments: RankArguments,
    checkpoint: Checkpoint,
    store: ArtifactStore,
    device: torch.device,
    rank: int,
    num_workers: int,
) -> Trainer:
    config, clips = arguments.config, EncodedClips(arguments.latents)
    dtype = resolve_dtype(config.model.dtype, device)
    model = LoraTransformer(checkpoint, dtype, config.training).to(device)
    module: torch.nn.Module = model
    if num_workers > 1:
        # The buffers are constant, and the learned positions among them are large.
        module = ray.train.torch.prepare_model(
            model, move_to_device=False, parallel_strategy_kwargs={"broadcast_buffers": False}
        )
    samples = SampleBuilder(
        config.training,
        len(model.alphas_cumprod),
        *latent_scales(checkpoint),
        clips.empty_prompt_embeds(),
    )
    return Trainer(
        model=model,
        module=module,
        clips=clips,
        samples=samples,
        schedule=TrainingSchedule(config.training, len(clips), num_workers),
        store=store,
        rank=rank,
        device=device,
    )
