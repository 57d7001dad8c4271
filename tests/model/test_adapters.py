"""Adapters act, come off without a trace, and are refused before any step when they do not fit."""

from pathlib import Path

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
from vidgen_ray.model.adapters import WEIGHTS_NAME, fold_in, fold_out, open_adapter, put_on
from vidgen_ray.model.checkpoint import load_pipeline, open_checkpoint
from vidgen_ray.schema import GenerationRequest, resolve_request


@pytest.fixture(scope="module")
def config(tiny_overrides: dict[str, object]) -> Config:
    return load_config("nano", tiny_overrides)


@pytest.fixture(scope="module")
def engine(config: Config) -> Engine:
    return Engine(config)


def make_request(config: Config, photo: Path, **fields: object) -> GenerationRequest:
    fields = {"id": "a", "image": str(photo), "prompt": "slow push in", **fields}
    return resolve_request(fields, config)


def test_an_adapter_acts_as_in_diffusers_and_comes_off(
    engine: Engine, config: Config, photo: Path, tiny_adapter: Path, tiny_folder: Path
) -> None:
    plain = make_request(config, photo)
    before = engine.generate(plain).video.frames
    worn = engine.generate(make_request(config, photo, lora=str(tiny_adapter)))
    assert (worn.video.frames != before).any()
    assert worn.adapter is not None
    assert len(worn.adapter.sha256) == 64
    half = make_request(config, photo, lora={"path": str(tiny_adapter), "scale": 0.5})
    halved = engine.generate(half).video.frames
    assert (halved != worn.video.frames).any()
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
    with pytest.raises(RequestError, match=r"must fit .* where the model needs 32 on axis"):
        open_adapter(LoRA(path=str(tmp_path / "wide.safetensors")), engine.checkpoint)
    deep = {key.replace("blocks.0.", "blocks.41."): tensor for key, tensor in weights.items()}
    save_file(deep, tmp_path / "deep.safetensors")
    with pytest.raises(RequestError, match=r"no linear layer transformer_blocks\.41"):
        open_adapter(LoRA(path=str(tmp_path / "deep.safetensors")), engine.checkpoint)
    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(RequestError, match="is not a LoRA tensor of the transformer"):
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
    refused(cut, "is cut short")
    text = tmp_path / "text.safetensors"
    text.write_text("not an adapter at all")
    refused(text, "is not a safetensors file")


def test_folding_in_is_fusing_as_peft_does_and_folding_out_restores_every_bit(
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
    fused, folded = (load_pipeline(checkpoint, "float32") for _ in range(2))
    plain = {key: tensor.clone() for key, tensor in folded.transformer.state_dict().items()}
    put_on(fused, adapter, 0.7)
    fused.fuse_lora(["transformer"])
    fused.unload_lora_weights()
    fold_in(folded, adapter, 0.7, checkpoint)
    weights = folded.transformer.state_dict()
    assert sum(not torch.equal(plain[key], weights[key]) for key in plain) == 4
    for key, tensor in fused.transformer.state_dict().items():
        torch.testing.assert_close(weights[key], tensor, atol=1e-5, rtol=1e-5)
    fold_out(folded, adapter, checkpoint)
    for key, tensor in folded.transformer.state_dict().items():
        assert torch.equal(tensor, plain[key])
