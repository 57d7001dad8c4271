"""Checkpoint folders with random weights from a seed: real architectures without a hub.

`python -m vidgen_ray.model.untrained cogvideox_5b_i2v FOLDER --device cuda` writes the full size on
a GPU host, 21 GB in 16-bit; `tiny` generates clips of 9 frames of 64x96 in a second, for tests.
"""

import argparse
import json
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
)
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from vidgen_ray.errors import ConfigError
from vidgen_ray.model.weights import CARD_NAME, INITIALIZED_ON_LOAD, PARTS, read_json

_MAX_TEXT_TOKENS = 226
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 1.0,
    "clip_sample": False,
    "timestep_spacing": "trailing",
}


@dataclass(frozen=True)
class CheckpointSpec:
    """Constructor arguments of the parts; omitted ones are as in CogVideoX-5B-I2V."""

    transformer: dict[str, Any]
    vae: dict[str, Any]
    text_encoder: dict[str, Any]
    scheduler: type[CogVideoXDPMScheduler] | type[CogVideoXDDIMScheduler]


def _transformer(**differences: Any) -> dict[str, Any]:
    return {
        "in_channels": 32,
        "out_channels": 16,
        "attention_head_dim": 64,
        "sample_frames": 49,
        "patch_size": 2,
        "max_text_seq_length": _MAX_TEXT_TOKENS,
        "use_rotary_positional_embeddings": True,
        "use_learned_positional_embeddings": True,
        **differences,
    }


def _small_t5(d_model: int) -> dict[str, Any]:
    return {"d_model": d_model, "d_kv": 32, "d_ff": 2 * d_model, "num_layers": 2, "num_heads": 4}


ARCHITECTURES = {
    "cogvideox_5b_i2v": CheckpointSpec(
        transformer=_transformer(
            num_attention_heads=48,
            num_layers=42,
            time_embed_dim=512,
            text_embed_dim=4096,
            sample_height=60,
            sample_width=90,
        ),
        vae={
            "block_out_channels": (128, 256, 256, 512),
            "layers_per_block": 3,
            "norm_num_groups": 32,
            "sample_height": 480,
            "sample_width": 720,
            "scaling_factor": 0.7,
            "invert_scale_latents": True,
        },
        text_encoder={
            "vocab_size": 32128,
            "d_model": 4096,
            "d_kv": 64,
            "d_ff": 10240,
            "num_layers": 24,
            "num_heads": 64,
        },
        scheduler=CogVideoXDDIMScheduler,
    ),
    "tiny": CheckpointSpec(
        transformer=_transformer(
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            time_embed_dim=16,
            text_embed_dim=32,
            sample_height=8,
            sample_width=12,
            sample_frames=9,
        ),
        vae={
            "block_out_channels": (8, 8, 16, 16),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "sample_height": 64,
            "sample_width": 96,
            "scaling_factor": 0.7,
            "invert_scale_latents": True,
        },
        text_encoder=_small_t5(32),
        scheduler=CogVideoXDDIMScheduler,
    ),
}

# Words of camera moves and news scenes; all others are tokenized letter by letter.
_WORDS = """
a an and the of to in on at by with from into over under behind before beside is are as it its no
camera shot push pushes pull pulls pan pans tilt tilts zoom zooms orbit orbits dolly static still
handheld steady left right up down out forward back around slow slowly fast quickly gentle gently
very smooth smoothly wide close long low high angle view scene frame
press news newsroom briefing podium microphone microphones reporter anchor speaker mayor minister
president police crowd people man woman person child street city hall square building tower bridge
harbour harbor ship boat sea river water market stock desk screen screens chart charts stadium match
player weather rain snow wind storm sun cloud clouds sky dusk dawn night day morning evening light
lights flag flags wave waves flame flames smoke fire car cars train tram road tree trees forest
mountain mountains field grass flower flowers house window door table coffee cup astronaut rocket
toy red green blue yellow white black gray brown old new small large bright dark warm cold
"""


def make_checkpoint(
    name: str,
    folder: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float16,
    device: str = "cpu",
    max_shard_size: str = "5GB",
    weights: bool = True,
) -> None:
    """Write the architecture `name` to `folder` in the form that diffusers loads.

    The same name, seed, dtype and device give the same bytes on the same versions. The learned
    positions are random too, since diffusers would leave them sinusoidal. A card in the folder
    says that the weights are untrained. `weights=False` leaves them out: `load_pipeline` then
    initializes them on their device, which saves a full-size model 21 GB of files.
    """
    card = {"name": f"{name}-untrained", "trained": False, "seed": seed}
    if weights:
        pipeline = _make_pipeline(name, seed, dtype, device)
        pipeline.save_pretrained(folder, max_shard_size=max_shard_size)
    else:
        pipeline = _make_pipeline(name, seed, dtype, "meta")
        folder.mkdir(parents=True, exist_ok=True)
        pipeline.save_config(folder)
        pipeline.tokenizer.save_pretrained(folder / "tokenizer")
        pipeline.scheduler.save_pretrained(folder / "scheduler")
        pipeline.transformer.save_config(folder / "transformer")
        pipeline.vae.save_config(folder / "vae")
        pipeline.text_encoder.config.save_pretrained(folder / "text_encoder")
        card = {**card, "architecture": name, "weights": INITIALIZED_ON_LOAD}
    (folder / CARD_NAME).write_text(json.dumps(card, indent=2) + "\n")


def make_weights(folder: Path, *, dtype: torch.dtype, device: str) -> CogVideoXImageToVideoPipeline:
    """The pipeline of a folder that was written without weights, initialized on `device`.

    Raises ConfigError where the card names no architecture that is known.
    """
    card = read_json(folder / CARD_NAME)
    name, seed = card.get("architecture"), card.get("seed")
    if name not in ARCHITECTURES or not isinstance(seed, int):
        raise ConfigError(
            f"model.checkpoint: {folder / CARD_NAME} must name a seed and one of "
            f"{sorted(ARCHITECTURES)}, got seed {seed!r} and {name!r}"
        )
    return _make_pipeline(name, seed, dtype, device)


def count_parameters(folder: Path) -> dict[str, int]:
    """Parameters of each part of such a folder."""
    pipeline = make_weights(folder, dtype=torch.float16, device="meta")
    return {
        part: sum(parameter.numel() for parameter in getattr(pipeline, part).parameters())
        for part in PARTS
    }


def _make_pipeline(
    name: str, seed: int, dtype: torch.dtype, device: str
) -> CogVideoXImageToVideoPipeline:
    architecture = ARCHITECTURES[name]
    tokenizer = _make_tokenizer()
    text_config = {
        "vocab_size": len(tokenizer),
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
        "is_encoder_decoder": False,
        "use_cache": False,
        **architecture.text_encoder,
    }
    default_dtype = torch.get_default_dtype()
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        # Half-precision initializers exist on GPUs, where the full size must not be built in fp32.
        torch.set_default_dtype(dtype if device != "cpu" else default_dtype)
        try:
            transformer = CogVideoXTransformer3DModel(**architecture.transformer)
            torch.nn.init.normal_(transformer.patch_embed.pos_embedding, std=0.02)
            pipeline = CogVideoXImageToVideoPipeline(
                tokenizer=tokenizer,
                text_encoder=T5EncoderModel(T5Config(**text_config)),
                vae=AutoencoderKLCogVideoX(
                    in_channels=3,
                    out_channels=3,
                    down_block_types=("CogVideoXDownBlock3D",) * 4,
                    up_block_types=("CogVideoXUpBlock3D",) * 4,
                    latent_channels=16,
                    temporal_compression_ratio=4,
                    **architecture.vae,
                ),
                transformer=transformer,
                scheduler=architecture.scheduler(**SCHEDULE),
            )
        finally:
            torch.set_default_dtype(default_dtype)
    for part in PARTS:
        torch.nn.Module.to(getattr(pipeline, part), dtype)
        getattr(pipeline, part).eval()
    return pipeline


def _make_tokenizer() -> T5Tokenizer:
    """A unigram tokenizer over letters, digits, punctuation and `_WORDS`, capitalised or not."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    letters = string.ascii_letters + string.digits + string.punctuation
    pieces += [(letter, -8.0) for letter in letters]
    words = [word for word in dict.fromkeys(_WORDS.split()) if len(word) > 1]
    pieces += [(f"▁{form}", -5.0) for word in words for form in (word, word.capitalize())]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=_MAX_TEXT_TOKENS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architecture", choices=sorted(ARCHITECTURES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--no-weights", action="store_true", help="initialize them on every load instead"
    )
    arguments = parser.parse_args()
    make_checkpoint(
        arguments.architecture,
        arguments.folder,
        seed=arguments.seed,
        dtype=getattr(torch, arguments.dtype),
        device=arguments.device,
        weights=not arguments.no_weights,
    )
