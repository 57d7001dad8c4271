"""`auto` picks the fastest placement that fits the free VRAM, as measured at full size."""

from pathlib import Path

import pytest
import torch

from vidgen_ray.config import ModelConfig, Profile, load_config
from vidgen_ray.errors import ConfigError
from vidgen_ray.model.acceleration import _peak_bytes, choose_options
from vidgen_ray.model.checkpoint import Checkpoint
from vidgen_ray.model.part_configs import (
    PartConfigs,
    TextEncoderConfig,
    TransformerConfig,
    VaeConfig,
)

FULL_SIZE = {"transformer": 5_570_283_072, "vae": 215_583_907, "text_encoder": 4_762_310_656}
NUM_PIXELS = 49 * 480 * 720


@pytest.fixture
def full_size(tmp_path: Path) -> Checkpoint:
    """The sizes of the 5B, without its files."""
    configs = PartConfigs(TransformerConfig(), VaeConfig(), TextEncoderConfig())
    checkpoint = Checkpoint("5b", tmp_path, configs, trained=True, hub_commit=None)
    vars(checkpoint)["num_parameters"] = FULL_SIZE  # a cached property
    return checkpoint


@pytest.mark.parametrize(
    ("free_gb", "offload", "vae_tiling"),
    [
        (140, "none", False),
        (42, "none", False),
        (32, "none", True),
        (24, "text", True),
        (16.3, "model", True),
        (12, "group", True),
        (2, "sequential", True),
    ],
)
def test_auto_offload_goes_by_the_free_vram(
    full_size: Checkpoint, free_gb: float, offload: str, vae_tiling: bool
) -> None:
    device = torch.device("cuda")
    free_bytes = int(free_gb * 1e9)
    options = choose_options(ModelConfig(), full_size, device, NUM_PIXELS, free_bytes)
    assert (options.offload, options.vae_tiling) == (offload, vae_tiling)


def test_explicit_options_are_kept(full_size: Checkpoint) -> None:
    model = ModelConfig(offload="sequential", vae_tiling=False)
    options = choose_options(model, full_size, torch.device("cuda"), NUM_PIXELS, int(140e9))
    assert (options.offload, options.vae_tiling) == ("sequential", False)


def test_a_cpu_has_nothing_to_offload(full_size: Checkpoint) -> None:
    model = ModelConfig(offload="group", vae_tiling=True)
    options = choose_options(model, full_size, torch.device("cpu"), NUM_PIXELS)
    assert (options.offload, options.vae_tiling) == ("none", True)


def test_a_profile_replaces_only_what_it_names() -> None:
    model = ModelConfig(offload="model", scheduler="ddim")
    assert model.under(None) == model
    assert model.under(Profile(num_inference_steps=3, linears="fp8")) == model
    changed = model.under(Profile(scheduler="dpm"))
    assert changed == ModelConfig(offload="model", scheduler="dpm")


def test_the_shipped_low_memory_profile_fits_a_small_card(full_size: Checkpoint) -> None:
    config = load_config("cogvideox_5b_i2v")
    model = config.model.under(config.profiles["low_memory"])
    options = choose_options(model, full_size, torch.device("cuda"), NUM_PIXELS, int(12e9))
    assert (options.offload, options.vae_tiling) == ("group", True)


def test_8_bit_linears_leave_room_for_the_text_encoder(full_size: Checkpoint) -> None:
    needs = {
        linears: _peak_bytes("bfloat16", full_size, NUM_PIXELS, "none", True, linears)
        for linears in ("exact", "fp8")
    }
    assert 4e9 < needs["exact"] - needs["fp8"] < 5.6e9


def test_incompatible_options_are_refused(full_size: Checkpoint) -> None:
    profile = Profile(linears="fp8_weights", offload="sequential", attention="native")
    with pytest.raises(ConfigError, match="offload: sequential supports neither compile nor"):
        choose_options(
            ModelConfig(), full_size, torch.device("cuda"), NUM_PIXELS, int(12e9), profile
        )


def test_auto_compiles_only_on_a_gpu_with_resident_weights(
    full_size: Checkpoint,
) -> None:
    profile = Profile(compile="auto", attention="native")
    cuda = torch.device("cuda")
    resident = choose_options(ModelConfig(), full_size, cuda, NUM_PIXELS, int(80e9), profile)
    streamed = choose_options(ModelConfig(), full_size, cuda, NUM_PIXELS, int(12e9), profile)
    on_cpu = choose_options(
        ModelConfig(), full_size, torch.device("cpu"), NUM_PIXELS, profile=profile
    )
    compiled = [options.speedups and options.speedups.compile for options in (resident, streamed)]
    assert compiled == [True, False]
    assert on_cpu.speedups is not None
    assert not on_cpu.speedups.compile
    assert resident.fuses_adapters
    assert not streamed.fuses_adapters
