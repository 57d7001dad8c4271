"""Profiles: each option does what it says, is recorded, and spends no more than its share."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vidgen_ray.config import Config, load_config
from vidgen_ray.errors import ConfigError, EngineError
from vidgen_ray.generation.content_hash import hash_content
from vidgen_ray.generation.engine import Engine, Generation
from vidgen_ray.model.untrained import make_checkpoint
from vidgen_ray.request import GenerationRequest, resolve_request

PROFILES = {
    "exact": {},
    "compiled": {"compile": True},
    "fp8": {"linears": "fp8"},
    "fp8_weights": {"linears": "fp8_weights"},
    "int8": {"linears": "int8"},
    "cached": {"step_cache": 0.9},
    "careful": {"step_cache": 1e-6},
    "flash": {"attention": "flash3"},
}


@pytest.fixture(scope="module")
def config(tiny_overrides: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Config:
    overrides = {
        **tiny_overrides,
        "generation.num_inference_steps": 6,
        "model.compile_cache": str(tmp_path_factory.mktemp("compiled")),
        "profiles": PROFILES,
    }
    return load_config("nano", overrides)


@pytest.fixture(scope="module")
def engine(config: Config) -> Engine:
    return Engine(config)


def make_request(
    config: Config, photo: Path, profile: str | None, **more: object
) -> GenerationRequest:
    fields = {"id": "a", "image": str(photo), "prompt": "slow push in", **more}
    if profile:
        fields |= {"mode": "optimized", "profile": profile}
    return resolve_request(fields, config)


@pytest.fixture(scope="module")
def baseline(engine: Engine, config: Config, photo: Path) -> Generation:
    return engine.generate(make_request(config, photo, None))


def latent_error(generation: Generation, baseline: Generation) -> float:
    difference = generation.latents - baseline.latents
    return float(difference.norm() / baseline.latents.norm())


@pytest.mark.smoke
def test_exact_is_the_baseline_up_to_the_decoders_rounding_and_says_what_it_used(
    engine: Engine, config: Config, photo: Path, baseline: Generation
) -> None:
    generation = engine.generate(make_request(config, photo, "exact"))
    assert baseline.model.acceleration is None
    assert generation.model.acceleration is not None
    assert generation.model.acceleration.attention == "native"
    assert generation.model.acceleration.num_computed_steps == 6
    np.testing.assert_array_equal(generation.latents, baseline.latents)
    rounding = np.abs(generation.video.frames.astype(int) - baseline.video.frames)
    assert rounding.max() <= 1
    assert rounding.mean() < 1e-3


@pytest.mark.parametrize(
    ("profile", "least", "most"),
    [
        pytest.param("compiled", 0, 1e-5, marks=pytest.mark.thorough),
        ("fp8", 1e-4, 0.05),
        ("fp8_weights", 1e-4, 0.02),
        ("int8", 1e-5, 0.03),
    ],
)
def test_options_stay_within_their_error(
    engine: Engine,
    config: Config,
    photo: Path,
    baseline: Generation,
    profile: str,
    least: float,
    most: float,
) -> None:
    generation = engine.generate(make_request(config, photo, profile))
    assert least <= latent_error(generation, baseline) <= most


def test_the_step_cache_skips_steps_counts_them_and_forgets(
    engine: Engine, config: Config, photo: Path, baseline: Generation
) -> None:
    first = engine.generate(make_request(config, photo, "cached"))
    assert first.model.acceleration is not None
    assert 1 <= first.model.acceleration.num_computed_steps < 6
    assert 0 < latent_error(first, baseline) < 0.5
    engine.generate(make_request(config, photo, "cached", seed=5, prompt="pan left"))
    again = engine.generate(make_request(config, photo, "cached"))
    np.testing.assert_array_equal(again.video.frames, first.video.frames)
    careful = engine.generate(make_request(config, photo, "careful"))
    assert careful.model.acceleration is not None
    assert careful.model.acceleration.num_computed_steps == 6
    assert latent_error(careful, baseline) < 1e-5


def test_a_kernel_that_is_named_and_missing_is_an_error(
    engine: Engine, config: Config, photo: Path
) -> None:
    with pytest.raises(ConfigError, match="attention: flash3 needs an NVIDIA GPU"):
        engine.generate(make_request(config, photo, "flash"))


@pytest.mark.parametrize(
    "profile",
    [
        pytest.param("compiled", marks=pytest.mark.thorough),
        pytest.param("fp8", marks=pytest.mark.slow),
    ],
)
def test_adapters_are_swapped_in_place_and_leave_no_trace(
    engine: Engine,
    config: Config,
    photo: Path,
    baseline: Generation,
    tiny_adapter: Path,
    profile: str,
) -> None:
    unfused = engine.generate(make_request(config, photo, None, lora=str(tiny_adapter)))
    plain = engine.generate(make_request(config, photo, profile))
    compiled = _count_compilations()
    worn = engine.generate(make_request(config, photo, profile, lora=str(tiny_adapter)))
    half = {"path": str(tiny_adapter), "scale": 0.5}
    halved = engine.generate(make_request(config, photo, profile, lora=half))
    off = engine.generate(make_request(config, photo, profile))
    assert _count_compilations() == compiled
    np.testing.assert_array_equal(off.video.frames, plain.video.frames)
    effect = latent_error(unfused, baseline)
    assert latent_error(worn, unfused) < (1e-4 if profile == "compiled" else 0.05)
    assert 0.3 * effect < latent_error(halved, plain) < 0.8 * effect


def test_the_profile_is_part_of_what_a_clip_is(engine: Engine, config: Config, photo: Path) -> None:
    def digest(profile: str | None) -> str:
        request = make_request(config, photo, profile)
        return hash_content(request, "image", None, config, engine.checkpoint)

    digests = {digest(profile) for profile in (None, "exact", "fp8", "cached")}
    assert len(digests) == 4


def test_weights_made_on_load_make_the_same_clips_every_time(
    config: Config, photo: Path, tmp_path: Path, tiny_adapter: Path
) -> None:
    make_checkpoint("tiny", tmp_path, weights=False)
    assert not list(tmp_path.rglob("*.safetensors"))
    model = config.model.model_copy(update={"checkpoint": str(tmp_path)})
    config = config.model_copy(update={"model": model})
    clips = []
    for _ in range(2):
        engine = Engine(config)
        assert not engine.checkpoint.trained
        clips.append(engine.generate(make_request(config, photo, "exact")).video.frames)
    np.testing.assert_array_equal(*clips)
    with pytest.raises((EngineError, ConfigError), match="holds no"):
        engine.generate(make_request(config, photo, "fp8", lora=str(tiny_adapter)))


@pytest.mark.thorough
def test_what_was_compiled_is_kept_for_the_next_process(
    config: Config, engine: Engine, photo: Path
) -> None:
    assert config.model.compile_cache
    engine.generate(make_request(config, photo, "compiled"))
    assert list(Path(config.model.compile_cache).glob("*.bin"))


def _count_compilations() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
