"""Real small models and real files for every test."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 9 frames of 64x96 with learned positions that makes a clip in a second."""
    from vidgen_ray.model.untrained import make_checkpoint

    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    make_checkpoint("tiny", folder)
    return folder


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of 96x64 pixels with smooth structure."""
    y, x = np.mgrid[0:64, 0:96] / 64
    pixels = np.stack([x / 1.5, y, 0.5 + 0.5 * np.sin(9 * x * y)], axis=-1)
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray((pixels * 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def tiny_overrides(tiny_folder: Path) -> dict[str, object]:
    """`--set` values that turn the nano configuration into one for the tiny checkpoint."""
    return {
        "model.checkpoint": str(tiny_folder),
        "model.dtype": "float32",
        "generation.num_frames": 9,
        "generation.height": 64,
        "generation.width": 96,
        "generation.num_inference_steps": 3,
        "generation.guidance_scale": 6.0,
        "quality.max_attempts": 1,
    }


@pytest.fixture(scope="session")
def tiny_adapter(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA folder for the tiny checkpoint, in the form that trainers export."""
    import torch
    from diffusers import CogVideoXImageToVideoPipeline, CogVideoXTransformer3DModel
    from peft import LoraConfig, get_peft_model_state_dict

    torch.manual_seed(0)
    transformer = CogVideoXTransformer3DModel.from_pretrained(tiny_folder / "transformer")
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    transformer.add_adapter(LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    folder = tmp_path_factory.mktemp("adapters") / "press"
    CogVideoXImageToVideoPipeline.save_lora_weights(
        folder, transformer_lora_layers=get_peft_model_state_dict(transformer)
    )
    return folder


@pytest.fixture(scope="session")
def ray_cluster():  # type: ignore[no-untyped-def]
    """One local Ray for all tests of a session that need one."""
    import ray

    from vidgen_ray.distributed.cluster import connected

    with connected("local"):
        yield ray
