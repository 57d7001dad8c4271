"""Assemble the trained parts into one diffusers folder in fp16."""

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
)
from transformers import T5EncoderModel, T5Tokenizer

from vidgen_ray.model.untrained import SCHEDULE
from vidgen_ray.model.weights import CARD_NAME

MAX_BYTES = 30_000_000
SHIPPED_TEXTS = ("MODEL_CARD.md", "images.csv")


def main() -> None:
    """Parse the command line and assemble."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("vae", "text", "transformer", "output"):
        parser.add_argument(name, type=Path)
    a = parser.parse_args()
    size = assemble(a.vae, a.text, a.transformer, a.output)
    print(f"{a.output}: {size / 1e6:.1f} MB")


def assemble(vae: Path, text: Path, transformer: Path, output: Path) -> int:
    """Write `output`; returns its size in bytes.

    The arguments are the output folders of `reduce_vae`, `prepare_text` and `train_transformer`.
    Raises ValueError if the size exceeds MAX_BYTES.
    """
    pipeline = CogVideoXImageToVideoPipeline(
        tokenizer=T5Tokenizer.from_pretrained(text / "tokenizer"),
        text_encoder=T5EncoderModel.from_pretrained(transformer / "text_encoder"),
        vae=AutoencoderKLCogVideoX.from_pretrained(vae / "vae"),
        transformer=CogVideoXTransformer3DModel.from_pretrained(transformer / "transformer"),
        scheduler=CogVideoXDPMScheduler(**SCHEDULE),
    )
    for part in (pipeline.text_encoder, pipeline.vae, pipeline.transformer):
        torch.nn.Module.to(part, torch.float16)
    pipeline.save_pretrained(output)
    (output / CARD_NAME).write_text(json.dumps({"name": "nano", "trained": True}, indent=2) + "\n")
    for name in SHIPPED_TEXTS:
        shutil.copy(Path(__file__).with_name(name), output / name)
    _make_public(output)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    if size > MAX_BYTES:
        raise ValueError(f"{output}: {size} bytes, at most {MAX_BYTES} may ship with the package")
    return size


def _make_public(folder: Path) -> None:
    """Remove local paths from the configurations and make all files world-readable."""
    for path in folder.rglob("*.*"):
        path.chmod(0o644)
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
