"""Real small models and real files for every test."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_worker_niceness", "0")  # or a busy machine leaves workers nothing


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
        "generation.mode": "baseline",
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
def tiny_training(tiny_overrides: dict[str, object]) -> dict[str, object]:
    """`--set` values above `training/lora_nano` that train the tiny checkpoint."""
    return {
        **tiny_overrides,
        "encoding.dtype": "float32",
        "encoding.num_noised_images": 2,
        "training.rank": 4,
        "training.targets": ["to_q", "to_k", "to_v", "to_out.0"],
        "training.num_samples": 0,
        "training.image_dropout": 0.05,
        "training.prompt_dropout": 0.1,
        "training.learning_rate": 1e-2,
        "training.warmup_steps": 0,
    }


@pytest.fixture(scope="session")
def tiny_latents(
    tiny_training: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Four clips encoded by the tiny checkpoint, as `vidgen encode` lays them out."""
    import torch

    from vidgen_ray.config import load_config
    from vidgen_ray.encoding import shards
    from vidgen_ray.encoding.driver import encoding_settings
    from vidgen_ray.model.checkpoint import open_checkpoint
    from vidgen_ray.model.encoders import PromptEncoder, VideoEncoder
    from vidgen_ray.schema import ClipSource

    config = load_config("training/lora_nano", tiny_training)
    checkpoint = open_checkpoint(config.model)
    settings = encoding_settings(config, checkpoint)
    cpu = torch.device("cpu")
    vae = VideoEncoder(checkpoint, "float32", cpu, tiling=False)
    text = PromptEncoder(checkpoint, "float32", cpu)
    folder = tmp_path_factory.mktemp("latents")
    prompts = ["", *(f"camera pans {way}" for way in ("left", "right", "up", "down"))]
    embeds, counts = text.encode(prompts)
    prompt_rows = [
        shards.prompt_row(settings.prompt_key(prompt), prompt, embeds[index], counts[index])
        for index, prompt in enumerate(prompts)
    ]
    y, x, t = np.mgrid[0:64, 0:96, 0:9] / 64
    entries, rows = [], []
    for index, prompt in enumerate(prompts[1:]):
        waves = [np.sin(5 * x + (index - 1.5) * 9 * t), np.cos(4 * y - index * 3 * t), x - y]
        frames = (np.stack(waves, -1).transpose(2, 0, 1, 3) * 60 + 128).astype(np.uint8)
        key = settings.latents_key(f"video {index}", None, "")
        images = vae.encode_image(frames[0], 2, index)
        rows.append(shards.latents_row(key, vae.encode_video(frames), images, b"not a picture"))
        source = ClipSource(dataset="test", licence="CC0")
        prompt_key = settings.prompt_key(prompt)
        entry = {"id": str(index), "prompt": prompt, "latents": key, "prompt_key": prompt_key}
        entries.append(shards.ClipEntry(**entry, outcome="encoded", source=source))
    for kind, of_kind in ((shards.LATENTS, rows), (shards.PROMPTS, prompt_rows)):
        name, data = shards.shard_bytes(of_kind)
        (folder / kind).mkdir()
        (folder / kind / name).write_bytes(data)
    (folder / shards.SETTINGS_NAME).write_text(settings.model_dump_json())
    (folder / shards.CLIPS_NAME).write_bytes(shards.entries_bytes(entries))
    return folder


@pytest.fixture(scope="session")
def ray_cluster():  # type: ignore[no-untyped-def]
    """One local Ray for all tests of a session that need one."""
    import ray

    from vidgen_ray.cluster.connect import connected

    with connected("local"):
        yield ray


@pytest.fixture
def s3_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket behind a real S3 API on this machine, for this process and those it starts."""
    import fsspec
    from moto.server import ThreadedMotoServer

    name = f"desk-{uuid.uuid4().hex[:8]}"
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for variable, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(variable, value)
    fsspec.filesystem("s3").clear_instance_cache()
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(name)
    yield name
    fsspec.filesystem("s3").clear_instance_cache()
    server.stop()
