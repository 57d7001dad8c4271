"""What a CPU is told before it computes, and the dtype that fits it."""

import logging

import pytest
import torch

from vidgen_ray import config
from vidgen_ray.config import load_config
from vidgen_ray.model import device
from vidgen_ray.model.device import use_cpu


@pytest.mark.parametrize(("multiplies", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_the_dtype_that_the_cpu_multiplies(
    monkeypatch: pytest.MonkeyPatch, multiplies: bool, dtype: str
) -> None:
    monkeypatch.setattr(config, "cpu_has_bfloat16", lambda: multiplies)
    monkeypatch.setattr(config, "has_nvidia_gpu", lambda: False)
    for name in ("nano", "training/lora_nano"):
        assert load_config(name).model.dtype == dtype
    assert load_config("training/lora_nano").encoding.dtype == dtype
    assert load_config("nano", {"model.dtype": "float16"}).model.dtype == "float16"
    monkeypatch.setattr(config, "has_nvidia_gpu", lambda: True)
    assert load_config("nano").model.dtype == "bfloat16"


def test_a_dtype_that_the_cpu_crawls_in_is_told(
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
