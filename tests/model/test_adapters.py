"""Adapters act, are removed without a trace, and are refused before any step if they do not fit."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDPMScheduler, CogVideoXImageToVideoPipeline
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file

from vidgen_ray.config import Config, LoRA, ModelConfig, load_config
from vidgen_ray.errors import RequestError
from vidgen_ray.generation.engine import Engine
from vidgen_ray.model import adapters
from vidgen_ray.model.adapters import fuse_lora, load_lora, open_adapter, unfuse_lora
from vidgen_ray.model.checkpoint import Checkpoint, open_checkpoint
from vidgen_ray.model.loading import load_pipeline
from vidgen_ray.model.lora_file import WEIGHTS_NAME, read_deltas
from vidgen_ray.request import GenerationRequest, resolve_request


@pytest.fixture(scope="module")
def config(tiny_overrides: dict[str, object]) -> Config:
    return load_config("nano", tiny_overrides)


@pytest.fixture(scope="module")
def engine(config: Config) -> Engine:
    return Engine(config)


def make_request(config: Config, photo: Path, **fields: object) -> GenerationRequest:
    fields = {"id": "a", "image": str(photo), "prompt": "slow push in", **fields}
    return resolve_request(fields, config)


def test_an_adapter_acts_as_in_diffusers_and_is_removed(
    engine: Engine, config: Config, photo: Path, tiny_adapter: Path, tiny_folder: Path
) -> None:
    plain = make_request(config, photo)
    before = engine.generate(plain).video.frames
    adapted = engine.generate(make_request(config, photo, lora=str(tiny_adapter)))
    assert (adapted.video.frames != before).any()
    assert adapted.adapter is not None
    assert len(adapted.adapter.sha256) == 64
    half = make_request(config, photo, lora={"path": str(tiny_adapter), "scale": 0.5})
    halved = engine.generate(half).video.frames
    assert (halved != adapted.video.frames).any()
    np.testing.assert_array_equal(engine.generate(plain).video.frames, before)

    pipeline = CogVideoXImageToVideoPipeline.from_pretrained(tiny_folder, dtype=torch.float32)
    pipeline.scheduler = CogVideoXDPMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing"
    )
    pipeline.load_lora_weights(tiny_adapter, adapter_name="press")
    pipeline.set_adapters(["press"], [0.5])
    frames = pipeline(
        image=Image.open(photo).convert("RGB"),
        prompt=plain.prompt,
        num_frames=9,
        num_inference_steps=plain.num_inference_steps,
        guidance_scale=plain.guidance_scale,
        generator=torch.Generator().manual_seed(plain.seed),
    ).frames[0]
    np.testing.assert_array_equal(halved, np.stack([np.asarray(frame) for frame in frames]))


def test_a_file_is_as_good_as_a_folder(engine: Engine, tiny_adapter: Path) -> None:
    by_folder = open_adapter(LoRA(path=str(tiny_adapter)), engine.checkpoint)
    by_file = open_adapter(LoRA(path=str(tiny_adapter / WEIGHTS_NAME)), engine.checkpoint)
    assert by_folder == by_file


def test_an_adapter_for_another_model_is_refused(
    engine: Engine, tiny_adapter: Path, tmp_path: Path
) -> None:
    weights = load_file(tiny_adapter / WEIGHTS_NAME)
    wide = {
        key: torch.zeros(2 * tensor.shape[0], 2 * tensor.shape[1])
        for key, tensor in weights.items()
    }
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(RequestError, match=r"cannot be applied .* model needs 32 on axis"):
        open_adapter(LoRA(path=str(tmp_path / "wide.safetensors")), engine.checkpoint)
    deep = {key.replace("blocks.0.", "blocks.41."): tensor for key, tensor in weights.items()}
    save_file(deep, tmp_path / "deep.safetensors")
    with pytest.raises(RequestError, match=r"no linear layer transformer_blocks\.41"):
        open_adapter(LoRA(path=str(tmp_path / "deep.safetensors")), engine.checkpoint)
    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(RequestError, match="is not a tensor of a LoRA"):
        open_adapter(LoRA(path=str(tmp_path / "other.safetensors")), engine.checkpoint)


def test_missing_and_broken_adapter_files_are_refused(
    engine: Engine, config: Config, photo: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    def refused(path: Path, match: str) -> None:
        steps: list[int] = []
        with pytest.raises(RequestError, match=match):
            engine.generate(
                make_request(config, photo, lora=str(path)), lambda done, _: steps.append(done)
            )
        assert steps == []

    refused(tmp_path / "nowhere", "lora: must be a folder or a .safetensors file that exists")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "must hold pytorch_lora_weights.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((tiny_adapter / WEIGHTS_NAME).read_bytes()[:-100])
    refused(cut, "cannot be read as safetensors: .*incomplete")
    text = tmp_path / "text.safetensors"
    text.write_text("not an adapter at all")
    refused(text, "cannot be read as safetensors")


def test_fusing_is_what_peft_does_and_unfusing_restores_every_bit(
    tiny_folder: Path, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(ModelConfig(checkpoint=str(tiny_folder)))
    torch.manual_seed(1)
    transformer = load_pipeline(checkpoint, "float32").transformer
    lora = LoraConfig(
        r=4, lora_alpha=8, target_modules=["to_q", "to_out.0"], init_lora_weights=False
    )
    transformer.add_adapter(lora)
    CogVideoXImageToVideoPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(transformer),
        transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
    )
    adapter = open_adapter(LoRA(path=str(tmp_path)), checkpoint)
    by_peft, fused = (load_pipeline(checkpoint, "float32") for _ in range(2))
    plain = {key: tensor.clone() for key, tensor in fused.transformer.state_dict().items()}
    load_lora(by_peft, adapter, 0.7)
    by_peft.fuse_lora(["transformer"])
    by_peft.unload_lora_weights()
    fuse_lora(fused, adapter, 0.7, checkpoint)
    weights = fused.transformer.state_dict()
    assert sum(not torch.equal(plain[key], weights[key]) for key in plain) == 4
    for key, tensor in by_peft.transformer.state_dict().items():
        torch.testing.assert_close(weights[key], tensor, atol=1e-5, rtol=1e-5)
    unfuse_lora(fused, adapter, checkpoint)
    for key, tensor in fused.transformer.state_dict().items():
        assert torch.equal(tensor, plain[key])


@pytest.fixture
def checkpoint(tiny_folder: Path) -> Checkpoint:
    return open_checkpoint(ModelConfig(checkpoint=str(tiny_folder)))


def _peft_folder(tiny_adapter: Path, folder: Path, alpha: float) -> LoRA:
    save_file(load_file(tiny_adapter / WEIGHTS_NAME), folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": alpha}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return LoRA(path=str(folder))


def test_an_adapter_is_checked_once_by_any_number_of_threads(
    checkpoint: Checkpoint, tiny_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []

    def read(*arguments: Any) -> Any:
        reads.append(arguments)
        return read_deltas(*arguments)

    monkeypatch.setattr(adapters, "read_deltas", read)
    lora = _peft_folder(tiny_adapter, tmp_path, alpha=4)
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: open_adapter(lora, checkpoint), range(32)))
    assert len(reads) == 1
    assert all(adapter is opened[0] for adapter in opened)
    start = time.perf_counter()
    open_adapter(lora, checkpoint)
    assert time.perf_counter() - start < 0.05


def test_a_file_that_changed_is_read_again(
    checkpoint: Checkpoint, tiny_adapter: Path, tmp_path: Path
) -> None:
    lora = _peft_folder(tiny_adapter, tmp_path, alpha=4)
    first = open_adapter(lora, checkpoint)
    assert {delta.scale for delta in first.deltas.values()} == {1.0}
    _peft_folder(tiny_adapter, tmp_path, alpha=2)
    settings = open_adapter(lora, checkpoint)
    assert {delta.scale for delta in settings.deltas.values()} == {0.5}
    file = tmp_path / "adapter_model.safetensors"
    stat = file.stat()
    save_file({key: -tensor for key, tensor in load_file(file).items()}, file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as copying tools do
    assert file.stat().st_size == stat.st_size
    weights = open_adapter(lora, checkpoint)
    assert len({adapter.sha256 for adapter in (first, settings, weights)}) == 3


def test_a_checkpoint_of_another_size_is_not_answered_from_the_cache(
    checkpoint: Checkpoint, tiny_adapter: Path
) -> None:
    lora = LoRA(path=str(tiny_adapter))
    open_adapter(lora, checkpoint)
    with pytest.raises(RequestError, match="cannot be applied to embedded"):
        open_adapter(lora, open_checkpoint(ModelConfig(checkpoint="embedded")))


def test_a_load_that_leaves_out_a_layer_is_refused(
    checkpoint: Checkpoint, tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = open_adapter(LoRA(path=str(tiny_adapter)), checkpoint)
    pipeline = load_pipeline(checkpoint, "float32")
    load = pipeline.load_lora_into_transformer

    def load_but_one(tensors: dict[str, torch.Tensor], *rest: Any, **settings: Any) -> None:
        left_out = {key for key in tensors if ".0.attn1.to_q." in key}
        load({key: tensors[key] for key in tensors.keys() - left_out}, *rest, **settings)

    monkeypatch.setattr(pipeline, "load_lora_into_transformer", load_but_one)
    with pytest.raises(RequestError, match=r"in 1 layers, such as .*\.0\.attn1\.to_q"):
        load_lora(pipeline, adapter, 1.0)
