"""On a GPU every placement makes the same clip, and running out of memory is one error."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vidgen_ray.config import load_config
from vidgen_ray.errors import OutOfMemory
from vidgen_ray.generation.engine import Engine
from vidgen_ray.request import resolve_request

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

OFFLOADS = ["none", "model", "group", "sequential"]


@pytest.mark.parametrize("offload", OFFLOADS)
def test_offload_moves_weights_and_changes_nothing(
    offload: str, tiny_overrides: dict[str, object], photo: Path, tiny_adapter: Path
) -> None:
    fields = {"id": "a", "image": str(photo), "prompt": "pan left"}
    clips = {}
    for name in {"none", offload}:
        config = load_config(
            "nano", {**tiny_overrides, "model.dtype": "float16", "model.offload": name}
        )
        engine = Engine(config)
        requests = [{}, {"lora": str(tiny_adapter)}, {}]
        made = [engine.generate(resolve_request({**fields, **more}, config)) for more in requests]
        assert all(generation.model.offload == name for generation in made)
        assert all(generation.peak_vram_gb for generation in made)
        clips[name] = [generation.video.frames for generation in made]
    for ours, plain in zip(clips[offload], clips["none"], strict=True):
        np.testing.assert_array_equal(ours, plain)
    assert (clips[offload][0] != clips[offload][1]).any()
    np.testing.assert_array_equal(clips[offload][0], clips[offload][2])


def test_out_of_memory_is_one_error_and_the_engine_goes_on(
    tiny_overrides: dict[str, object], photo: Path
) -> None:
    config = load_config("nano", {**tiny_overrides, "model.offload": "none"})
    engine = Engine(config)
    fields = {"id": "a", "image": str(photo), "prompt": "pan left"}
    small = resolve_request(fields, config)
    expected = engine.generate(small).video.frames
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(1e9 / total)
    try:
        big = {"num_frames": 49, "height": 960, "width": 1440, "allow_untrained_shape": True}
        with pytest.raises(OutOfMemory, match=r"out of memory in .*offload none.*model.offload"):
            engine.generate(resolve_request({**fields, **big}, config))
        np.testing.assert_array_equal(engine.generate(small).video.frames, expected)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_the_gpu_agrees_with_the_cpu(tiny_overrides: dict[str, object], photo: Path) -> None:
    fields = {"id": "a", "image": str(photo), "prompt": "pan left"}
    clips = []
    for device in ("cpu", "cuda"):
        config = load_config("nano", {**tiny_overrides, "model.device": device})
        generation = Engine(config).generate(resolve_request(fields, config))
        clips.append(generation.video.frames.astype(int))
    assert np.abs(clips[0] - clips[1]).mean() < 2
