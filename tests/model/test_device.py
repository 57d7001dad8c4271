"""The dtype that `auto` becomes, and what is refused or reported about a CPU."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from vidgen_ray.config import ModelConfig, load_config
from vidgen_ray.errors import ConfigError
from vidgen_ray.model import device
from vidgen_ray.model.acceleration import choose_options
from vidgen_ray.model.checkpoint import open_checkpoint
from vidgen_ray.model.device import require_gpu, resolve_dtype, use_cpu

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_auto_stays_a_value_where_a_configuration_is_parsed() -> None:
    for name in ("nano", "training/lora_nano"):
        assert load_config(name).model.dtype == "auto"
    assert load_config("training/lora_nano").encoding.dtype == "auto"
    assert load_config("nano", {"model.dtype": "float16"}).model.dtype == "float16"


@pytest.mark.parametrize(("multiplies", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_resolved_by_the_device_that_runs_the_model(
    monkeypatch: pytest.MonkeyPatch, multiplies: bool, dtype: str
) -> None:
    monkeypatch.setattr(device, "cpu_has_bfloat16", lambda: multiplies)
    assert resolve_dtype("auto", CPU) == dtype
    assert resolve_dtype("auto", GPU) == "bfloat16"
    assert resolve_dtype("float16", CPU) == "float16"


def test_a_head_without_gpu_gives_its_gpu_workers_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cpu_has_bfloat16", lambda: False)
    model = load_config("nano").model  # parsed on the head, sent to the worker by value
    checkpoint = open_checkpoint(ModelConfig(checkpoint="embedded"))
    on_worker = choose_options(model, checkpoint, GPU, 49 * 160 * 240, free_bytes=10**11)
    on_head = choose_options(model, checkpoint, CPU, 49 * 160 * 240)
    assert (on_worker.dtype, on_head.dtype) == ("bfloat16", "float32")


def test_a_dtype_that_the_cpu_is_slow_in_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(device, "cpu_has_bfloat16", lambda: False)
    with caplog.at_level(logging.WARNING):
        use_cpu(threads, "float32")
        assert not caplog.records
        use_cpu(threads, "bfloat16")
    assert "set model.dtype=auto or float32" in caplog.text
    assert torch.get_num_threads() == threads


def test_the_5b_is_not_run_on_a_cpu_by_accident(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"num_gpus_per_worker: 1 for .*use --config nano"):
        require_gpu(load_config("cogvideox_5b_i2v"))
    require_gpu(load_config("nano"))
    require_gpu(load_config("cogvideox_5b_i2v", {"model.device": "cpu"}))


def test_encoding_and_training_resolve_auto_on_the_worker(
    monkeypatch: pytest.MonkeyPatch, tiny_folder: Path
) -> None:
    from vidgen_ray.model.encoders import VideoEncoder
    from vidgen_ray.training.worker import device_facts

    monkeypatch.setattr(device, "cpu_has_bfloat16", lambda: False)
    config = load_config("training/lora_nano", {"model.device": "cpu"})
    assert device_facts(config, 1).dtype == "float32"
    checkpoint = open_checkpoint(ModelConfig(checkpoint=str(tiny_folder)))
    encoder = VideoEncoder(checkpoint, config.encoding.dtype, CPU, tiling=False)
    assert encoder.encode_video(np.zeros((9, 64, 96, 3), np.uint8)).dtype == torch.float32


def test_a_training_run_resumes_in_the_dtype_that_it_began_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from vidgen_ray.generation.artifacts import ArtifactStore
    from vidgen_ray.training import driver

    store = ArtifactStore(str(tmp_path))
    store.write(driver.RUN_NAME, b'{"model.dtype": "bfloat16"}')
    monkeypatch.setattr(driver, "committed_states", lambda _: [1])
    driver._refuse_changed(store, {"model.dtype": "auto"})  # before a worker has resolved it
    driver._refuse_changed(store, {"model.dtype": "bfloat16"})
    with pytest.raises(ConfigError, match=r"model.dtype was bfloat16, is float32"):
        driver._refuse_changed(store, {"model.dtype": "float32"})
