"""Any CogVideoX image-to-video folder loads by the same code, and others say what is wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from vidgen_ray.config import ModelConfig
from vidgen_ray.errors import ConfigError
from vidgen_ray.model.checkpoint import load_pipeline, open_checkpoint, why_not_cached
from vidgen_ray.model.untrained import ARCHITECTURES, make_checkpoint


@pytest.mark.smoke
def test_the_embedded_model_is_a_whole_checkpoint() -> None:
    checkpoint = open_checkpoint(ModelConfig(checkpoint="embedded"))
    assert (checkpoint.num_frames, checkpoint.height, checkpoint.width) == (49, 160, 240)
    assert 1e6 < sum(checkpoint.num_parameters.values()) < 20e6
    pipeline = load_pipeline(checkpoint, "float32")
    parts = {part: getattr(pipeline, part) for part in checkpoint.num_parameters}
    for name, part in parts.items():
        count = sum(tensor.numel() for tensor in part.parameters())
        assert abs(count - checkpoint.num_parameters[name]) < 0.3 * count  # buffers, tied weights
    assert pipeline.transformer.config.use_learned_positional_embeddings
    assert why_not_cached(ModelConfig(checkpoint="embedded")) is None


def test_untrained_weights_are_made_deterministically(tiny_folder: Path, tmp_path: Path) -> None:
    make_checkpoint("tiny", tmp_path / "again")
    for path in tiny_folder.rglob("*.safetensors"):
        made = tmp_path / "again" / path.relative_to(tiny_folder)
        assert made.read_bytes() == path.read_bytes(), path.name


def test_the_full_size_architecture_has_the_5b_s_parameters() -> None:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
    from transformers import T5Config, T5EncoderModel

    architecture = ARCHITECTURES["cogvideox_5b_i2v"]
    with torch.device("meta"):
        transformer = CogVideoXTransformer3DModel(**architecture.transformer)
        vae = AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            **architecture.vae,
        )
        config = T5Config(feed_forward_proj="gated-gelu", **architecture.text_encoder)
        text_encoder = T5EncoderModel(config)
    billions = [
        sum(tensor.numel() for tensor in part.parameters()) / 1e9
        for part in (transformer, vae, text_encoder)
    ]
    assert billions == pytest.approx([5.57, 0.216, 4.76], abs=0.01)


def test_a_sentencepiece_tokenizer_as_on_the_hub_loads(tmp_path: Path, tiny_folder: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path / "hub"
    shutil.copytree(tiny_folder, folder)
    tokenizer = folder / "tokenizer"
    shutil.rmtree(tokenizer)
    tokenizer.mkdir()
    words = ["slow push in", "pan left over the city", "tilt up to the tower", "harbour at dusk"]
    (tmp_path / "corpus.txt").write_text("\n".join(words * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(tokenizer / "spiece"),
        vocab_size=28,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 226})
    )
    checkpoint = open_checkpoint(ModelConfig(checkpoint=str(folder)))
    pipeline = load_pipeline(checkpoint, "float32")
    ids = pipeline.tokenizer("slow pan left").input_ids
    assert len(ids) > 3
    assert ids[-1] == 1


def test_the_fingerprint_follows_the_bytes(tmp_path: Path, tiny_folder: Path) -> None:
    copy, other = tmp_path / "copy", tmp_path / "other"
    for folder in (copy, other):
        shutil.copytree(tiny_folder, folder)
    weights = other / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    original, same, changed = (
        open_checkpoint(ModelConfig(checkpoint=str(folder))).fingerprint
        for folder in (tiny_folder, copy, other)
    )
    assert original == same
    assert original != changed


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    def refused(checkpoint: str, match: str) -> None:
        with pytest.raises(ConfigError, match=match):
            open_checkpoint(ModelConfig(checkpoint=checkpoint))

    refused("no such thing", "must be `embedded`, an existing folder or a hub id")
    refused("zai-org/CogVideoX-5b-I2V", "is not in the local cache and the hub did not give it")
    refused(str(tmp_path), r"model_index\.json cannot be read")
    text = json.loads((tiny_folder / "model_index.json").read_text())
    text["_class_name"] = "CogVideoXPipeline"
    (tmp_path / "model_index.json").write_text(json.dumps(text))
    refused(str(tmp_path), "must hold a CogVideoXImageToVideoPipeline, got CogVideoXPipeline")


def test_pickled_weights_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_folder, folder)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ConfigError, match=r"vae holds neither .*safetensors"):
        open_checkpoint(ModelConfig(checkpoint=str(folder)))
