"""The engine agrees with diffusers, keeps clips apart, and says what is wrong."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDPMScheduler, CogVideoXImageToVideoPipeline, FirstBlockCacheConfig
from PIL import Image
from safetensors.torch import load_file, save_file

from vidgen_ray.config import Config, load_config
from vidgen_ray.errors import ClipCancelled, ClipTimeout, EngineError, RequestError
from vidgen_ray.generation.engine import Engine
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


def call_diffusers(
    folder: Path, photo: Path, request: GenerationRequest, dtype: torch.dtype = torch.float32
) -> np.ndarray:
    pipeline = CogVideoXImageToVideoPipeline.from_pretrained(folder, dtype=dtype)
    pipeline.scheduler = CogVideoXDPMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing"
    )
    frames = pipeline(
        image=Image.open(photo).convert("RGB").resize((request.width, request.height)),
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        num_frames=request.num_frames,
        height=request.height,
        width=request.width,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator().manual_seed(request.seed),
    ).frames[0]
    return np.stack([np.asarray(frame) for frame in frames])


@pytest.mark.smoke
@pytest.mark.parametrize(("guidance_scale", "negative_prompt"), [(6.0, "dark"), (1.0, "")])
def test_baseline_is_the_same_as_diffusers_bit_for_bit(
    engine: Engine,
    config: Config,
    tiny_folder: Path,
    photo: Path,
    guidance_scale: float,
    negative_prompt: str,
) -> None:
    fields = {"guidance_scale": guidance_scale, "negative_prompt": negative_prompt}
    request = make_request(config, photo, **fields, seed=7)
    video = engine.generate(request).video
    assert video.frames.shape == (9, 64, 96, 3)
    np.testing.assert_array_equal(video.frames, call_diffusers(tiny_folder, photo, request))


@pytest.mark.slow
def test_the_embedded_model_is_the_same_as_diffusers_bit_for_bit(tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (160, 240, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photo)
    config = load_config(
        "nano", {"generation.num_inference_steps": 2, "generation.mode": "baseline"}
    )
    engine = Engine(config)
    request = make_request(config, photo)
    made = engine.generate(request)
    assert made.video.frames.shape == (49, 160, 240, 3)
    dtype = getattr(torch, made.model.dtype)
    expected = call_diffusers(engine.checkpoint.folder, photo, request, dtype)
    np.testing.assert_array_equal(made.video.frames, expected)


def test_another_seed_prompt_or_step_count_makes_another_clip(
    engine: Engine, config: Config, photo: Path
) -> None:
    clips = [
        engine.generate(make_request(config, photo, **fields)).video.frames
        for fields in ({}, {"seed": 1}, {"prompt": "pan left"}, {"num_inference_steps": 2})
    ]
    for other in clips[1:]:
        assert (clips[0] != other).any()


def test_stages_and_steps_are_reported(engine: Engine, config: Config, photo: Path) -> None:
    steps: list[tuple[int, int]] = []
    generation = Engine(config).generate(
        make_request(config, photo), lambda done, total: steps.append((done, total))
    )
    assert steps == [(1, 3), (2, 3), (3, 3)]
    stages = generation.stages
    for name in ("load_s", "text_s", "image_encode_s", "denoise_s", "decode_s"):
        assert getattr(stages, name) > 0
    assert generation.model.trained is False
    assert generation.model.scheduler == "CogVideoXDPMScheduler"
    assert generation.peak_vram_gb is None or torch.cuda.is_available()
    assert engine.generate(make_request(config, photo)).stages.load_s is None


def engine_with_a_cache(config: Config) -> Engine:
    """An engine whose transformer remembers the last step's first block."""
    engine = Engine(config)
    engine.load()
    assert engine._loaded is not None
    engine._loaded.pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    return engine


@pytest.fixture(scope="module")
def undisturbed(config: Config, photo: Path) -> np.ndarray:
    """What such an engine makes as its first clip."""
    request = make_request(config, photo, num_inference_steps=6)
    return engine_with_a_cache(config).generate(request).video.frames


@pytest.mark.parametrize("end", ["cancel", "timeout", "callback"])
def test_nothing_of_a_clip_that_ended_early_reaches_the_next(
    config: Config, photo: Path, undisturbed: np.ndarray, end: str
) -> None:
    used = engine_with_a_cache(config)
    early = make_request(config, photo, seed=3, prompt="pan left", num_inference_steps=6)
    steps = 0

    def on_step(done: int, _total: int) -> None:
        nonlocal steps
        steps = done
        if end == "callback" and done == 2:
            raise ValueError("listener broke")

    with pytest.raises((ClipCancelled, ClipTimeout, EngineError)) as ended:
        used.generate(
            early,
            on_step,
            cancelled=lambda: end == "cancel" and steps == 2,
            timeout_s=1e-9 if end == "timeout" else None,
        )
    expected = {"cancel": ClipCancelled, "timeout": ClipTimeout, "callback": EngineError}
    assert ended.type is expected[end]
    request = make_request(config, photo, num_inference_steps=6)
    np.testing.assert_array_equal(used.generate(request).video.frames, undisturbed)


@pytest.mark.thorough
def test_fp16_overflow_is_redone_in_bf16_and_recorded(
    tiny_folder: Path, photo: Path, tmp_path: Path, tiny_overrides: dict[str, object]
) -> None:
    folder = copy_checkpoint(tiny_folder, tmp_path / "hot")
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    # Up by 2**16, out of fp16's range, and down again: finite in bf16 alone.
    name = "transformer_blocks.0.ff.net.0.proj.weight"
    weights[name] = weights[name].float() * 2**20
    back = "transformer_blocks.0.ff.net.2.weight"
    weights[back] = weights[back].float() * 2**-20
    save_file({key: tensor.float().contiguous() for key, tensor in weights.items()}, file)
    config = load_config(
        "nano", {**tiny_overrides, "model.checkpoint": str(folder), "model.dtype": "float16"}
    )
    engine = Engine(config)
    first = engine.generate(make_request(config, photo))
    assert first.model.dtype == "bfloat16"
    assert first.model.bf16_fallback
    assert np.ptp(first.video.frames) > 0
    again = engine.generate(make_request(config, photo))
    np.testing.assert_array_equal(first.video.frames, again.video.frames)


def test_latents_that_are_never_finite_are_an_error(
    tiny_folder: Path, photo: Path, tmp_path: Path, tiny_overrides: dict[str, object]
) -> None:
    folder = copy_checkpoint(tiny_folder, tmp_path / "broken")
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["proj_out.weight"][0, 0] = float("nan")
    save_file(weights, file)
    config = load_config("nano", {**tiny_overrides, "model.checkpoint": str(folder)})
    with pytest.raises(EngineError, match="not finite in float32"):
        Engine(config).generate(make_request(config, photo))


def test_untrained_shapes_are_refused_unless_allowed(
    engine: Engine, config: Config, photo: Path
) -> None:
    with pytest.raises(RequestError, match=r"num_frames: must be 9 .* got 17"):
        engine.generate(make_request(config, photo, num_frames=17))
    with pytest.raises(RequestError, match=r"height: must be 64"):
        engine.generate(make_request(config, photo, height=128))
    with pytest.raises(RequestError, match=r"num_frames: must be one more than a multiple of 8"):
        engine.generate(make_request(config, photo, num_frames=13, allow_untrained_shape=True))
    with pytest.raises(RequestError, match=r"width: must be a multiple of 16"):
        engine.generate(make_request(config, photo, width=104, allow_untrained_shape=True))


@pytest.mark.parametrize("shape", [(17, 64, 96), (1, 64, 96), (9, 32, 48), (17, 96, 64)])
def test_an_allowed_untrained_shape_is_made_and_leaves_no_trace(
    engine: Engine, config: Config, photo: Path, shape: tuple[int, int, int]
) -> None:
    before = engine.generate(make_request(config, photo)).video.frames
    num_frames, height, width = shape
    request = make_request(
        config,
        photo,
        num_frames=num_frames,
        height=height,
        width=width,
        allow_untrained_shape=True,
    )
    assert engine.generate(request).video.frames.shape == (*shape, 3)
    np.testing.assert_array_equal(before, engine.generate(make_request(config, photo)).video.frames)


def test_a_prompt_that_the_model_would_cut_is_refused(
    engine: Engine, config: Config, photo: Path
) -> None:
    with pytest.raises(RequestError, match=r"prompt: must be at most 226 tokens, got \d+"):
        engine.generate(make_request(config, photo, prompt="slow push in, " * 60))


def test_profiles_change_what_they_name_and_are_recorded(
    tiny_overrides: dict[str, object], photo: Path
) -> None:
    config = load_config(
        "nano",
        {
            **tiny_overrides,
            "profiles.ddim": {"scheduler": "ddim"},
            "profiles.tiled": {"vae_tiling": True},
        },
    )
    engine = Engine(config)
    plain = engine.generate(make_request(config, photo))
    exact = engine.generate(make_request(config, photo, mode="optimized"))
    np.testing.assert_array_equal(plain.latents, exact.latents)
    rounding = np.abs(exact.video.frames.astype(int) - plain.video.frames)
    assert rounding.max() <= 1
    assert rounding.mean() < 1e-3
    ddim = engine.generate(make_request(config, photo, mode="optimized", profile="ddim"))
    assert ddim.model.scheduler == "CogVideoXDDIMScheduler"
    assert (ddim.video.frames != plain.video.frames).any()
    tiled = engine.generate(make_request(config, photo, mode="optimized", profile="tiled"))
    assert tiled.model.vae_tiling
    assert not plain.model.vae_tiling
    difference = np.abs(tiled.video.frames.astype(int) - plain.video.frames)
    assert 0 < difference.mean() < 10
    steps = load_config("nano", {"profiles.fast.num_inference_steps": 20})
    assert make_request(steps, photo, mode="optimized", profile="fast").num_inference_steps == 20
    with pytest.raises(RequestError, match=r"profile: must be one of .*, got 'warp'"):
        engine.generate(make_request(config, photo, mode="optimized", profile="warp"))


@pytest.mark.thorough
def test_out_of_memory_says_what_to_change(
    tiny_folder: Path, photo: Path, tiny_overrides: dict[str, object]
) -> None:
    script = f"""
import resource
from vidgen_ray.config import load_config
from vidgen_ray.errors import OutOfMemory
from vidgen_ray.generation.engine import Engine
from vidgen_ray.request import resolve_request
config = load_config("nano", {tiny_overrides!r})
engine = Engine(config)
fields = dict(id="big", image={str(photo)!r}, prompt="pan", num_inference_steps=1)
big = dict(num_frames=9, height=4096, width=4096, allow_untrained_shape=True)
engine.generate(resolve_request(fields, config))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
try:
    engine.generate(resolve_request({{**fields, **big}}, config))
except OutOfMemory as error:
    print("REFUSED:", error)
engine.generate(resolve_request(fields, config))
print("STILL WORKS")
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "REFUSED: big: out of memory in" in run.stdout, run.stderr[-2000:]
    assert "fewer or smaller frames" in run.stdout
    assert "STILL WORKS" in run.stdout, run.stderr[-2000:]


def copy_checkpoint(source: Path, target: Path) -> Path:
    import shutil

    shutil.copytree(source, target)
    return target
