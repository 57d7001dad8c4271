"""Training learns, resumes on the same curve, shares a step among workers, and exports."""

import csv
import io
import os
import signal
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from vidgen_ray.config import load_config
from vidgen_ray.errors import ConfigError, DatasetError, EngineError, Interrupted, RequestError
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.schema import GenerationRecord
from vidgen_ray.training.driver import run_training
from vidgen_ray.training.loop import Trainer
from vidgen_ray.training.run import TrainingArguments
from vidgen_ray.training.state import committed_states, load_state

WEIGHTS = "pytorch_lora_weights.safetensors"


class Run:
    """Training of the tiny checkpoint on four clips, in a folder."""

    def __init__(self, output: Path, latents: Path, overrides: dict[str, object]) -> None:
        self.output = output
        self.latents = latents
        self.overrides = overrides
        self.said = ""

    def train(self, num_workers: int = 0, **settings: Any) -> None:
        console = Console(file=io.StringIO(), width=200)
        overrides = {**self.overrides, **{f"training.{k}": v for k, v in settings.items()}}
        config = load_config("training/lora_nano", overrides)
        arguments = TrainingArguments(str(self.latents), str(self.output), config, num_workers)
        try:
            run_training(arguments, console)
        finally:
            self.said = console.file.getvalue()  # type: ignore[attr-defined]

    def column(self, name: str = "loss") -> list[float]:
        with (self.output / "metrics.csv").open() as file:
            return [float(row[name]) for row in csv.DictReader(file)]

    def weights(self, adapter: str = "adapter_final") -> dict[str, torch.Tensor]:
        return load_file(self.output / adapter / WEIGHTS)


@pytest.fixture
def run(tmp_path: Path, tiny_latents: Path, tiny_training: dict[str, object]) -> Run:
    return Run(tmp_path / "run", tiny_latents, tiny_training)


@pytest.fixture
def other(tmp_path: Path, tiny_latents: Path, tiny_training: dict[str, object]) -> Run:
    return Run(tmp_path / "other", tiny_latents, tiny_training)


def test_a_run_leaves_adapters_metrics_and_a_plot(run: Run) -> None:
    run.train(num_epochs=2, ema_decay=0.5)
    assert run.column("step") == list(range(1, 9))
    assert run.column("epoch") == [1] * 4 + [2] * 4
    assert run.weights("adapter_epoch_0001").keys() == run.weights().keys()
    assert (run.output / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((run.output / "tensorboard").glob("events.*"))
    assert "estimated for each" in run.said
    assert "measured: " in run.said
    assert "num_epochs: 2" in (run.output / "config.yaml").read_text()
    before = sorted(path.stat().st_mtime_ns for path in run.output.rglob("*.safetensors"))
    run.train(num_epochs=2, ema_decay=0.5)
    assert "is already trained" in run.said
    assert before == sorted(path.stat().st_mtime_ns for path in run.output.rglob("*.safetensors"))


def test_a_learning_rate_of_zero_changes_no_byte(run: Run, other: Run) -> None:
    run.train(num_epochs=3, learning_rate=0.0)
    other.train(num_epochs=1, learning_rate=0.0)
    first = other.weights()
    for adapter in ("adapter_epoch_0001", "adapter_final"):
        assert all(
            torch.equal(weight, first[name]) for name, weight in run.weights(adapter).items()
        )
    # All of B is zero as in the beginning, so the product that is added to the base is, too.
    assert all((weight == 0).all() for name, weight in first.items() if "lora_B" in name)
    assert any((weight != 0).any() for name, weight in first.items() if "lora_A" in name)


def test_a_run_in_parts_has_the_curve_and_the_weights_of_one_in_whole(
    run: Run, other: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"num_epochs": 3, "checkpoint_every_steps": 3, "ema_decay": 0.9, "warmup_steps": 2}
    run.train(**settings)

    step = Trainer._step

    def step_or_die(trainer: Trainer, number: int, *rest: Any) -> Any:
        if number == 10:
            raise RuntimeError("killed")
        return step(trainer, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", step_or_die)
        with pytest.raises(EngineError, match=r"killed; the same command resumes"):
            other.train(**settings)
    assert len(other.column()) == 10
    other.train(**settings)
    assert "resuming after step 9" in other.said
    assert other.column("step") == list(range(1, 13))
    assert other.column() == pytest.approx(run.column(), abs=1e-5)
    for name, weight in run.weights().items():
        torch.testing.assert_close(other.weights()[name], weight, atol=1e-5, rtol=0)


@pytest.mark.thorough
def test_sigterm_commits_and_leaves_and_the_run_goes_on(run: Run, other: Run) -> None:
    settings = {"num_epochs": 8, "checkpoint_every_steps": 1000}
    run.train(**settings)

    def terminate() -> None:
        while not (other.output / "run.json").exists():
            time.sleep(0.02)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=terminate)
    killer.start()
    with pytest.raises(Interrupted):
        other.train(**settings)
    killer.join()
    (state,) = sorted((other.output / "state").glob("*.pt"))[-1:]
    stopped_after = int(state.stem.removeprefix("step-"))
    assert 0 < stopped_after < 32
    other.train(**settings)
    assert other.column("step") == run.column("step")
    assert other.column() == pytest.approx(run.column(), abs=1e-5)


def test_changed_settings_are_refused_and_named(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"training\.rank: at most 10%"):
        run.train(num_epochs=1, rank=64)
    run.train(num_epochs=1)  # what never began holds nobody to its settings
    with pytest.raises(ConfigError, match=r"output: .*learning_rate was 0\.01, is 0\.5"):
        run.train(num_epochs=1, learning_rate=0.5)
    with pytest.raises(ConfigError, match=r"samples a step was 1, is 2"):
        run.train(num_epochs=1, batch_size=2)
    run.train(num_epochs=1, checkpoint_every_steps=7)  # decides nothing


@pytest.mark.thorough
def test_the_first_clips_are_made_with_the_adapter_of_each_epoch(run: Run, tmp_path: Path) -> None:
    from PIL import Image

    image = tmp_path / "image.png"
    Image.linear_gradient("L").resize((96, 64)).save(image)
    samples = [{"image": str(image), "prompt": "pan left", "seed": 3}]
    run.train(num_epochs=2, sample_every_epochs=1, samples=samples)
    records = [
        GenerationRecord.model_validate_json(path.read_text())
        for path in sorted((run.output / "samples").glob("*.json"))
    ]
    assert [record.id for record in records] == ["epoch-0001-1", "epoch-0002-1"]
    for number, record in enumerate(records, start=1):
        assert record.seed == 3
        assert record.score is not None
        assert record.adapter is not None
        assert record.adapter.path == f"{run.output}/adapter_epoch_{number:04d}"
        assert (run.output / "samples" / f"{record.id}.mp4").stat().st_size > 1000


@pytest.mark.thorough
def test_samples_may_be_the_first_of_a_prompts_file(run: Run, tmp_path: Path, photo: Path) -> None:
    prompts = tmp_path / "prompts.yaml"
    rows = [
        f"{{id: hall, image: {photo}, prompt: pan left, seed: 5}}",
        f"{{id: sky, image: {photo}, template: weather, "
        "fields: {place: Oslo, conditions: snow}}",
        f"{{id: third, image: {photo}, prompt: tilt up}}",
    ]
    prompts.write_text(f"trigger: nightfall\nprompts: [{', '.join(rows)}]\n")
    run.train(num_epochs=2, sample_every_epochs=2, samples=str(prompts), num_samples=2)
    first, second = (
        GenerationRecord.model_validate_json(path.read_text())
        for path in sorted((run.output / "samples").glob("*.json"))
    )
    assert first.request is not None
    assert second.request is not None
    assert (first.request.prompt, first.seed) == ("nightfall pan left", 5)
    assert second.request.prompt.startswith("nightfall ")
    assert "Oslo" in second.request.prompt
    prompts.write_text("prompts: [{id: a, image: a.png, template: nothing}]")
    run.output = tmp_path / "other"
    with pytest.raises(RequestError, match=r"training\.samples: .*line 1 .*nothing"):
        run.train(samples=str(prompts))
    prompts.write_text("prompts: [{id: a, image: a.png, prompt: pan left}]")
    with pytest.raises(RequestError, match=r"training\.samples: no such file"):
        run.train(samples=str(prompts), num_samples=1)


def test_a_sample_that_fails_is_told_of_and_training_goes_on(run: Run) -> None:
    run.train(num_epochs=1, samples=[{"image": "/nowhere.png", "prompt": "pan left"}])
    assert "sample 1 failed: image: no such file" in run.said
    assert run.weights()


def test_latents_of_another_model_or_unfinished_ones_are_refused(
    run: Run, tmp_path: Path, tiny_latents: Path
) -> None:
    run.overrides = {**run.overrides, "model.checkpoint": "embedded"}
    with pytest.raises(ConfigError, match=r"latents: were encoded with another vae"):
        run.train()
    run.latents = tmp_path
    with pytest.raises(DatasetError, match=r"latents: .* has no clips\.jsonl"):
        run.train()


def test_what_cannot_fit_is_refused_before_it_starts(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidgen_ray.training.worker.free_bytes", lambda device: 10**6)
    with pytest.raises(ConfigError, match=r"needs about .* GB on each worker .* use training\."):
        run.train()
    assert not (run.output / "metrics.csv").exists()


def test_a_loss_that_is_not_finite_stops_with_one_error(run: Run) -> None:
    with pytest.raises(EngineError, match=r"step \d+: the loss is .*training\.learning_rate"):
        run.train(num_epochs=50, learning_rate=1e30, max_grad_norm=1e30)


def test_eight_bit_moments_train(run: Run) -> None:
    pytest.importorskip("torchao")
    run.train(num_epochs=2, optimizer="adamw8bit", checkpoint_every_steps=3)
    store = ArtifactStore(str(run.output))
    state = load_state(store, committed_states(store)[-1])
    assert state.num_steps == 8
    assert state.optimizer["state"]
    assert any((weight != 0).any() for name, weight in run.weights().items() if "lora_B" in name)


def test_mlflow_gets_every_step_in_its_default_store(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)  # the default store is a SQLite file in the working folder
    import mlflow

    run.train(num_epochs=1, trackers=["mlflow"])
    assert (tmp_path / "mlflow.db").exists()
    experiment = mlflow.get_experiment_by_name("vidgen")
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([experiment.experiment_id])
    steps = client.get_metric_history(found.info.run_id, "train/loss")
    assert [metric.value for metric in steps] == pytest.approx(run.column())


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_gets_a_run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run.train(num_epochs=1, trackers=["wandb"])
    (file,) = tmp_path.rglob("*.wandb")
    assert b"train/loss" in file.read_bytes()


def test_a_tracker_that_cannot_start_is_one_clear_error(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"training\.trackers: wandb cannot start: .*pip install"):
        run.train(num_epochs=1, trackers=["wandb"])
    assert not (run.output / "run.json").exists()  # it is reported before training begins
    assert not (run.output / "state").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_two_workers_follow_the_curve_of_one_that_accumulates_two(run: Run, other: Run) -> None:
    run.train(num_epochs=3, gradient_accumulation_steps=2)
    other.train(num_workers=2, num_epochs=3)
    assert other.column() == pytest.approx(run.column(), abs=1e-5)
    for name, weight in run.weights().items():
        torch.testing.assert_close(other.weights()[name], weight, atol=1e-5, rtol=0)
    assert len(set(run.column())) == 6


@pytest.mark.usefixtures("ray_cluster")
def test_more_gpus_than_there_are_is_refused_at_once(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"num_workers: 3 need 3 GPUs, but this machine has 0"):
        run.train(num_workers=3, num_gpus_per_worker=1)
