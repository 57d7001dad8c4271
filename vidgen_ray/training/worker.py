"""One rank of a training run: builds the loop, and makes adapters and samples between epochs."""

import gc
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from vidgen_ray.addresses import one_line
from vidgen_ray.cluster.metrics import TrainingMetrics
from vidgen_ray.config import Config, SamplePrompt
from vidgen_ray.encoding.shards import EncodedClips
from vidgen_ray.errors import ConfigError, VidgenError
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.generation.single import generate_clip
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
from vidgen_ray.model.lora_file import FINAL_NAME, WEIGHTS_NAME
from vidgen_ray.provenance import versions
from vidgen_ray.schema import GenerationRecord
from vidgen_ray.training.board import ask
from vidgen_ray.training.estimate import DeviceFacts
from vidgen_ray.training.loop import Trainer
from vidgen_ray.training.samples import SampleMaker
from vidgen_ray.training.schedule import Plan
from vidgen_ray.training.state import StepMetrics


@dataclass(frozen=True)
class WorkerJob:
    """What a rank needs to know. `board` is a Board or the handle of one."""

    latents: str
    output: str
    config: Config
    board: Any


def train_worker(loop_config: dict[str, Any]) -> None:
    """Ray Train calls this on every rank, again after a rank was lost."""
    job: WorkerJob = loop_config["job"]
    if ask(job.board, "error") is not None:
        return  # another rank met an error that would come again: leave, and let the driver tell
    try:
        _train(job)
    except VidgenError as error:
        ask(job.board, "fail", error)
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        advice = ConfigError(
            "training: out of memory; use training.gradient_checkpointing=full, a smaller "
            f"batch_size or rank, or optimizer=adamw8bit ({one_line(error)[:200]})"
        )
        ask(job.board, "fail", advice)
        raise advice from error


def device_facts(config: Config, num_workers: int) -> DeviceFacts:
    """The device that a worker here gets; workers on a CPU share the machine's memory."""
    device = choose_device(config.model.device)
    shared = num_workers if device.type == "cpu" else 1
    dtype = resolve_dtype(config.model.dtype, device)
    flops = matmul_flops(device, getattr(torch, dtype)) / shared
    return DeviceFacts(describe_device(device), free_bytes(device) // shared, flops, dtype)


def _train(job: WorkerJob) -> None:
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    config = job.config
    device = choose_device(config.model.device)
    if device.type == "cuda":
        device = ray.train.torch.get_device() if ray.is_initialized() else torch.device("cuda:0")
        torch.cuda.set_device(device)  # for this thread; samples are made on it, too
    else:
        num_threads = max(1, num_cores() // context.get_local_world_size())
        use_cpu(num_threads, config.model.dtype)
    checkpoint = open_checkpoint(config.model)
    clips = EncodedClips(job.latents)
    store = ArtifactStore(job.output)
    dtype = resolve_dtype(config.model.dtype, device)
    model = LoraTransformer(checkpoint, dtype, config.training).to(device)
    module: torch.nn.Module = model
    if num_workers > 1:
        # The buffers never change, and that of the learned positions is large.
        module = ray.train.torch.prepare_model(
            model, move_to_device=False, parallel_strategy_kwargs={"broadcast_buffers": False}
        )
    latents_scale, image_latents_scale = latent_scales(checkpoint)
    trainer = Trainer(
        model=model,
        module=module,
        clips=clips,
        maker=SampleMaker(
            config.training,
            len(model.alphas_cumprod),
            latents_scale,
            image_latents_scale,
            clips.empty_prompt_embeds(),
        ),
        plan=Plan(config.training, len(clips), num_workers),
        store=store,
        rank=rank,
        device=device,
    )
    metrics = TrainingMetrics(rank) if ray.is_initialized() else None

    def on_step(step: StepMetrics) -> bool:
        if metrics is not None:
            metrics.step(
                loss=step.loss,
                samples_per_s=step.samples_per_s,
                step_s=step.step_s,
                peak_vram_gb=step.peak_vram_gb,
            )
        return rank != 0 or bool(ask(job.board, "step", step))

    trainer.resume()
    if rank == 0:
        ask(job.board, "restore", trainer.history)
    gallery = _Gallery(job, store, checkpoint, trainer, num_workers)
    if trainer.run(on_step, gallery.end_epoch) and rank == 0:
        gallery.finish()


class _Gallery:
    """Adapters and what they make, at the end of each epoch."""

    def __init__(
        self,
        job: WorkerJob,
        store: ArtifactStore,
        checkpoint: Checkpoint,
        trainer: Trainer,
        num_workers: int,
    ) -> None:
        self._job = job
        self._store = store
        self._checkpoint = checkpoint
        self._trainer = trainer
        self._num_workers = num_workers

    def end_epoch(self, epoch: int) -> None:
        """Export the adapter, and make this rank's share of the samples with it."""
        trainer, training = self._trainer, self._job.config.training
        with tempfile.TemporaryDirectory() as folder:
            dtype = resolve_dtype(self._job.config.model.dtype, trainer.device)
            file = trainer.model.export(Path(folder), dtype)
            if trainer.rank == 0:
                self._publish(file, epoch)
            wanted = (epoch + 1) % training.sample_every_epochs == 0
            if wanted or epoch + 1 == trainer.plan.num_epochs:
                self._make_samples(epoch, file, Path(folder))

    def finish(self) -> None:
        """The adapter of the last epoch, once more, as the final one: the run's commit mark."""
        store, last = self._store, _name_of(self._trainer.plan.num_epochs - 1)
        for name in ("adapter.json", WEIGHTS_NAME):
            data = store.read(f"{last}/{name}")
            assert data is not None
            store.write(f"{FINAL_NAME}/{name}", data)

    def _publish(self, file: Path, epoch: int) -> None:
        training = self._job.config.training
        facts = {
            "checkpoint": self._checkpoint.source,
            "transformer": self._checkpoint.part_fingerprint("transformer"),
            "epoch": epoch + 1,
            "num_clips": len(self._trainer.clips),
            "clips": self._trainer.clips.fingerprint,
            "terms": sorted(
                {e.source.terms or e.source.licence for e in self._trainer.clips.entries}
            ),
            "rank": training.rank,
            "alpha": self._trainer.model.alpha,
            "targets": training.targets,
            "ema_decay": training.ema_decay,
            "versions": versions(),
        }
        store, name = self._store, _name_of(epoch)
        store.write(f"{name}/adapter.json", json.dumps(facts, indent=2).encode())
        store.write(f"{name}/{WEIGHTS_NAME}", file.read_bytes())
        ask(self._job.board, "say", f"epoch {epoch + 1}: {name}/{WEIGHTS_NAME}")

    def _make_samples(self, epoch: int, adapter: Path, folder: Path) -> None:
        """Make the samples of this rank; one that fails is told of, and training goes on."""
        store, board = self._store, self._job.board
        config = self._job.config
        once = config.quality.model_copy(update={"max_attempts": 1})  # the seed is to stay
        config = config.model_copy(update={"quality": once})
        _free_memory(self._trainer.device)
        for index, prompt in enumerate(self._prompts()):
            name = f"epoch-{epoch + 1:04d}-{index + 1}"
            mine = index % self._num_workers == self._trainer.rank
            if not mine or store.read(f"samples/{name}.json") is not None:
                continue
            fields = {**prompt.model_dump(), "lora": {"path": str(adapter)}}
            try:
                record = generate_clip(fields, folder / f"{name}.mp4", config)
            except VidgenError as error:
                ask(board, "say", f"epoch {epoch + 1}: sample {index + 1} failed: {error}")
                continue
            store.write(f"samples/{name}.mp4", (folder / f"{name}.mp4").read_bytes())
            lasting = _with_adapter(record, f"{self._job.output}/{_name_of(epoch)}")
            store.write(f"samples/{name}.json", lasting)
            score = f", score {record.score.score:.2f}" if record.score else ""
            ask(board, "say", f"epoch {epoch + 1}: samples/{name}.mp4, {record.status}{score}")
        _free_memory(self._trainer.device)

    def _prompts(self) -> list[SamplePrompt]:
        """The prompts of the configuration, else those and the images of the first clips."""
        training, clips, store = self._job.config.training, self._trainer.clips, self._store
        if training.samples:
            assert not isinstance(training.samples, str)  # the driver has read the file
            return training.samples
        prompts = []
        for index in range(min(training.num_samples, len(clips))):
            name = f"samples/image-{index + 1}.png"
            if store.read(name) is None:
                store.write(name, clips.picture(index))
            prompt = clips.entries[index].prompt
            prompts.append(SamplePrompt(image=store.address_of(name), prompt=prompt))
        return prompts


def _free_memory(device: torch.device) -> None:
    """Give what the samples' pipeline, or the last step, held back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _name_of(epoch: int) -> str:
    return f"adapter_epoch_{epoch + 1:04d}"


def _with_adapter(record: GenerationRecord, path: str) -> bytes:
    """The record with the lasting address of the adapter, which lay in a temporary folder."""
    assert record.request is not None
    assert record.adapter is not None
    assert record.request.lora is not None
    lora = record.request.lora.model_copy(update={"path": path})
    lasting = {
        "request": record.request.model_copy(update={"lora": lora}),
        "adapter": record.adapter.model_copy(update={"path": path}),
    }
    return record.model_copy(update=lasting).model_dump_json(indent=2).encode()
