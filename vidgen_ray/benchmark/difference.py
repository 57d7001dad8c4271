"""How far one clip is from another: frames and latents."""

import cv2
import numpy as np
import torch

from vidgen_ray.generation.image_match import psnr_db
from vidgen_ray.schema import Difference


def compare(
    frames: np.ndarray,
    expected_frames: np.ndarray,
    latents: torch.Tensor | None,
    expected_latents: torch.Tensor | None,
) -> Difference:
    """Frames uint8 [F, H, W, 3] and latents against those that are expected. Shapes must agree."""
    ssim = [
        np.mean(cv2.quality.QualitySSIM_compute(one, other)[0][:3])  # type: ignore[attr-defined]
        for one, other in zip(frames, expected_frames, strict=True)
    ]
    error = None
    if latents is not None and expected_latents is not None:
        expected = expected_latents.float().cpu()
        error = float((latents.float().cpu() - expected).norm() / expected.norm())
    return Difference(latents=error, psnr_db=psnr_db(frames, expected_frames), ssim=np.mean(ssim))
