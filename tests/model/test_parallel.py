"""CFG and Ulysses parallelism match a single rank, over gloo on the CPU."""

import multiprocessing
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from diffusers import CogVideoXTransformer3DModel

from vidgen_ray.config import load_config
from vidgen_ray.errors import ConfigError
from vidgen_ray.generation.engine import Engine
from vidgen_ray.model.attention import joint_rotary
from vidgen_ray.model.denoiser import Denoiser
from vidgen_ray.model.parallel import RankMesh, join, leave
from vidgen_ray.request import resolve_request

CPU = torch.device("cpu")


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def on_ranks(size: int, work: Callable[..., None], *arguments: object) -> None:
    """Run `work(mesh, *arguments)` in `size` processes that joined one group."""
    multiprocessing.set_forkserver_preload(["vidgen_ray.generation.engine"])  # imported once
    start = (size, free_address(), work, arguments)
    mp.start_processes(_run, start, nprocs=size, start_method="forkserver")


def _run(rank: int, size: int, address: str, work: Callable[..., None], arguments: tuple) -> None:
    torch.set_num_threads(1)
    guided = work is not unguided
    try:
        work(join(rank, size, address, CPU, 240, guided=guided), *arguments)
    finally:
        leave()


def make_transformer(num_heads: int) -> CogVideoXTransformer3DModel:
    """2 blocks; 3 latent frames of 2x3 patches and 5 text tokens: nothing divides by 4."""
    torch.manual_seed(0)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=num_heads,
        attention_head_dim=16,
        num_layers=2,
        in_channels=8,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=12,
        sample_height=4,
        sample_width=6,
        sample_frames=9,
        max_text_seq_length=5,
        use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=True,
    )
    return transformer.eval()


def inputs(batch: int) -> dict[str, torch.Tensor | tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    angles = torch.rand(18, 8, generator=generator).repeat_interleave(2, dim=1)
    return {
        "hidden_states": torch.randn(batch, 3, 8, 4, 6, generator=generator),
        "encoder_hidden_states": torch.randn(batch, 5, 12, generator=generator),
        "timestep": torch.full((batch,), 500),
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }


def agrees_with_diffusers(mesh: RankMesh, num_heads: int, batch: int, step_cache: float) -> None:
    transformer = make_transformer(num_heads)
    with torch.no_grad():
        expected = transformer(**inputs(batch)).sample
        denoiser = Denoiser(transformer, "native", step_cache, mesh)
        denoiser.begin()
        for _ in range(2):
            ours = transformer(**inputs(batch)).sample
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert denoiser.num_computed == 1  # the second step is equal, and all ranks reuse the residual


def agrees_guided_and_not(mesh: RankMesh, num_heads: int) -> None:
    agrees_with_diffusers(mesh, num_heads, 2, 0.1)
    agrees_with_diffusers(mesh, num_heads, 1, 0.1)
    assert mesh.any(mesh.rank == 1)
    assert not mesh.any(False)


@pytest.mark.thorough
@pytest.mark.parametrize(("size", "num_heads"), [(2, 4), (4, 4), (8, 4)], ids=["cfg", "2x2", "2x4"])
def test_ranks_match_diffusers(size: int, num_heads: int) -> None:
    on_ranks(size, agrees_guided_and_not, num_heads)


def unguided(mesh: RankMesh) -> None:
    assert mesh.ulysses.size == mesh.size
    agrees_guided_and_not(mesh, 4)


def test_unguided_clips_use_ulysses_on_all_ranks() -> None:
    on_ranks(2, unguided)


def three(mesh: RankMesh) -> None:
    agrees_guided_and_not(mesh, 3)
    with pytest.raises(ConfigError, match=r"gpus_per_clip: 3 makes 3 Ulysses ranks, .* 4 heads"):
        Denoiser(make_transformer(4), "native", None, mesh)


def test_an_odd_number_of_ranks_uses_ulysses_alone_if_the_heads_divide() -> None:
    on_ranks(3, three)


def compiled_agrees(mesh: RankMesh) -> None:
    transformer = make_transformer(4)
    with torch.no_grad():
        expected = transformer(**inputs(2)).sample
        Denoiser(transformer, "native", None, mesh)
        for block in transformer.transformer_blocks:
            block.compile(fullgraph=True, dynamic=False)
        ours = transformer(**inputs(2)).sample
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_compiled_blocks_match_diffusers() -> None:
    on_ranks(4, compiled_agrees)


def makes_the_same_clip(mesh: RankMesh, overrides: dict, photo: str, folder: str) -> None:
    config = load_config("nano", overrides)
    fields = {"id": "a", "image": photo, "prompt": "slow push in", "seed": 3}
    profiles = [{}, {"mode": "optimized", "profile": "tiled"}]
    together = Engine(config, mesh)
    alone = Engine(config) if mesh.rank == 0 else None
    for profile in profiles:
        request = resolve_request({**fields, **profile}, config)
        made = together.generate(request)
        assert made.model.acceleration is not None
        assert made.model.acceleration.ranks == mesh.size
        if alone is not None:
            expected = alone.generate(request)
            torch.testing.assert_close(made.latents, expected.latents, atol=1e-4, rtol=1e-4)
            difference = made.video.frames.astype(int) - expected.video.frames
            assert abs(difference).max() <= 1


@pytest.mark.thorough
def test_an_engine_on_ranks_matches_one_device(
    tiny_overrides: dict[str, object], photo: Path, tmp_path: Path
) -> None:
    overrides = {**tiny_overrides, "profiles": {"exact": {}, "tiled": {"vae_tiling": True}}}
    on_ranks(4, makes_the_same_clip, overrides, str(photo), str(tmp_path))


def test_text_tokens_get_an_identity_rotation() -> None:
    cos, sin = joint_rotary((torch.zeros(3, 4), torch.ones(3, 4)), 2) or (None, None)
    assert cos is not None
    assert sin is not None
    assert cos[:2].eq(1).all()
    assert sin[:2].eq(0).all()
