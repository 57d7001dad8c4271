"""Settings under which the tests' tiny, untrained checkpoint makes accepted clips."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "data" / "samples" / "brandenburg-gate.jpg"

# What an untrained model makes is noise; these thresholds let it pass.
LENIENT = {
    "quality.min_temporal_score": 0,
    "quality.max_flicker": 9,
    "quality.max_texture_change": 999,
    "quality.max_disorder": 99,
    "quality.max_wobble_px": 999,
    "quality.max_cut_strength": 99,
    "quality.max_patch_grid": 1,
    "quality.min_image_match_db": 0,
    "quality.allow_static": True,
}


def tiny_settings(checkpoint: Path) -> dict[str, Any]:
    """Settings for a checkpoint of `python -m vidgen_ray.model.untrained tiny CHECKPOINT`: 9 frames
    of 64x96, a clip in a fraction of a second."""
    return {
        "model.checkpoint": str(checkpoint),
        "model.dtype": "float32",
        "generation.num_frames": 9,
        "generation.height": 64,
        "generation.width": 96,
        "generation.num_inference_steps": 10,
        "quality.max_attempts": 1,
        **LENIENT,
    }


def make_tiny_checkpoint(folder: Path) -> Path:
    """The tiny checkpoint, made once."""
    if not (folder / "model_index.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, "-m", "vidgen_ray.model.untrained", "tiny", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
    return folder
