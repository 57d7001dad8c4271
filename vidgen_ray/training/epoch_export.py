"""Export the adapter of each epoch and generate sample clips with it."""

import gc
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vidgen_ray.config import SamplePrompt
from vidgen_ray.errors import VidgenError
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.generation.single import generate_clip
from vidgen_ray.model.checkpoint import Checkpoint
from vidgen_ray.model.device import resolve_dtype
from vidgen_ray.model.lora_file import FINAL_NAME, WEIGHTS_NAME
from vidgen_ray.provenance import versions
from vidgen_ray.schema import GenerationRecord
from vidgen_ray.training.channel import call
from vidgen_ray.training.loop import Trainer
from vidgen_ray.training.run import RankArguments


@dataclass(frozen=True)
class EpochExporter:
    """What a rank does at the end of each epoch."""

    arguments: RankArguments
    store: ArtifactStore
    checkpoint: Checkpoint
    trainer: Trainer
    num_workers: int

    def end_epoch(self, epoch: int) -> None:
        """Export the adapter, and generate this rank's share of the samples with it."""
        trainer, training = self.trainer, self.arguments.config.training
        with tempfile.TemporaryDirectory() as folder:
            dtype = resolve_dtype(self.arguments.config.model.dtype, trainer.device)
            file = trainer.model.export(Path(folder), dtype)
            if trainer.rank == 0:
                self._publish(file, epoch)
            is_due = (epoch + 1) % training.sample_every_epochs == 0
            if is_due or epoch + 1 == trainer.schedule.num_epochs:
                self._generate_samples(epoch, file, Path(folder))

    def finish(self) -> None:
        """Copy the last epoch's adapter to the final one, which marks the run as complete."""
        last = _name_of(self.trainer.schedule.num_epochs - 1)
        for name in ("adapter.json", WEIGHTS_NAME):
            data = self.store.read(f"{last}/{name}")
            assert data is not None
            self.store.write(f"{FINAL_NAME}/{name}", data)

    def _publish(self, file: Path, epoch: int) -> None:
        name = _name_of(epoch)
        facts = json.dumps(self._facts(epoch), indent=2)
        self.store.write(f"{name}/adapter.json", facts.encode())
        self.store.write(f"{name}/{WEIGHTS_NAME}", file.read_bytes())
        self._tell_user(f"epoch {epoch + 1}: {name}/{WEIGHTS_NAME}")

    def _facts(self, epoch: int) -> dict[str, Any]:
        """The content of `adapter.json`."""
        training, clips = self.arguments.config.training, self.trainer.clips
        return {
            "checkpoint": self.checkpoint.source,
            "transformer": self.checkpoint.part_fingerprint("transformer"),
            "epoch": epoch + 1,
            "num_clips": len(clips),
            "clips": clips.fingerprint,
            "terms": sorted({e.source.terms or e.source.licence for e in clips.entries}),
            "rank": training.rank,
            "alpha": self.trainer.model.alpha,
            "targets": training.targets,
            "ema_decay": training.ema_decay,
            "versions": versions(),
        }

    def _generate_samples(self, epoch: int, adapter: Path, folder: Path) -> None:
        """Generate the samples of this rank; a failed one is reported and training continues."""
        _free_memory(self.trainer.device)
        for index, prompt in enumerate(self._prompts()):
            name = f"epoch-{epoch + 1:04d}-{index + 1}"
            is_own = index % self.num_workers == self.trainer.rank
            if is_own and self.store.read(f"samples/{name}.json") is None:
                try:
                    self._generate_sample(prompt, name, epoch, adapter, folder)
                except VidgenError as error:
                    self._tell_user(f"epoch {epoch + 1}: sample {index + 1} failed: {error}")
        _free_memory(self.trainer.device)

    def _generate_sample(
        self, prompt: SamplePrompt, name: str, epoch: int, adapter: Path, folder: Path
    ) -> None:
        config = self.arguments.config
        one_attempt = config.quality.model_copy(update={"max_attempts": 1})  # keeps the seed
        config = config.model_copy(update={"quality": one_attempt})
        fields = {**prompt.model_dump(), "lora": {"path": str(adapter)}}
        record = generate_clip(fields, folder / f"{name}.mp4", config)
        self.store.write(f"samples/{name}.mp4", (folder / f"{name}.mp4").read_bytes())
        record = _with_adapter(record, f"{self.arguments.output}/{_name_of(epoch)}")
        self.store.write(f"samples/{name}.json", record.model_dump_json(indent=2).encode())
        score = f", score {record.score.score:.2f}" if record.score else ""
        self._tell_user(f"epoch {epoch + 1}: samples/{name}.mp4, {record.status}{score}")

    def _prompts(self) -> list[SamplePrompt]:
        """The prompts of the configuration, else those and the images of the first clips."""
        training, clips = self.arguments.config.training, self.trainer.clips
        if training.samples:
            assert not isinstance(training.samples, str)  # the driver has read the file
            return training.samples
        prompts = []
        for index in range(min(training.num_samples, len(clips))):
            name = f"samples/image-{index + 1}.png"
            if self.store.read(name) is None:
                self.store.write(name, clips.picture(index))
            prompt = clips.entries[index].prompt
            prompts.append(SamplePrompt(image=self.store.address_of(name), prompt=prompt))
        return prompts

    def _tell_user(self, text: str) -> None:
        call(self.arguments.channel, "add_message", text)


def _free_memory(device: torch.device) -> None:
    """Return cached memory of the samples' pipeline, or of the last step, to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _name_of(epoch: int) -> str:
    return f"adapter_epoch_{epoch + 1:04d}"


def _with_adapter(record: GenerationRecord, path: str) -> GenerationRecord:
    """The record with the final address of the adapter instead of its temporary one."""
    assert record.request is not None
    assert record.adapter is not None
    assert record.request.lora is not None
    lora = record.request.lora.model_copy(update={"path": path})
    changes = {
        "request": record.request.model_copy(update={"lora": lora}),
        "adapter": record.adapter.model_copy(update={"path": path}),
    }
    return record.model_copy(update=changes)
