"""Whether a clip begins with its photo: what optical flow, which compares frames, cannot see."""

import cv2
import numpy as np

MATCH_SIZE = (60, 40)  # of the pictures that are compared: detail may be lost, content may not
MOST_DB = 60.0  # of pictures that are equal


def image_match_db(frame: np.ndarray, image: np.ndarray) -> float:
    """PSNR of a frame against the conditioning image, both uint8 RGB of any size, made small."""
    small = [
        cv2.resize(picture.astype(np.float32), MATCH_SIZE, interpolation=cv2.INTER_AREA)
        for picture in (frame, image)
    ]
    error = float(np.mean(np.square(small[0] - small[1])))
    return MOST_DB if error == 0 else min(MOST_DB, float(10 * np.log10(255**2 / error)))
