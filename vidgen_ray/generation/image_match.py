"""PSNR of frames, and of a clip's first frame against its conditioning image."""

import cv2
import numpy as np

MATCH_SIZE = (60, 40)  # width and height compared: fine detail is ignored, content is not
MAX_DB = 60.0  # reported for equal pictures


def psnr_db(frames: np.ndarray, expected: np.ndarray) -> float | None:
    """Peak signal-to-noise ratio of arrays of one shape with values 0..255; None if equal."""
    error = np.mean(np.square(frames.astype(np.float32) - expected.astype(np.float32)))
    return None if error == 0 else float(10 * np.log10(255**2 / error))


def image_match_db(frame: np.ndarray, image: np.ndarray) -> float:
    """PSNR of a frame against the conditioning image, both downscaled to MATCH_SIZE.

    Both are uint8 RGB [height, width, 3] of any size. Optical flow compares frames with each other
    and cannot see a clip that does not start from its image.
    """
    small = [
        cv2.resize(picture.astype(np.float32), MATCH_SIZE, interpolation=cv2.INTER_AREA)
        for picture in (frame, image)
    ]
    psnr = psnr_db(*small)
    return MAX_DB if psnr is None else min(MAX_DB, psnr)
