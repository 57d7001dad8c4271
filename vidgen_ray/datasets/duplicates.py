"""Find near-duplicate clips by the Hamming distance of their perceptual hashes."""

from collections.abc import Sequence

import numpy as np

_ROWS_AT_ONCE = 256


def find_duplicates(hashes: Sequence[str | None], max_distance: int) -> dict[int, int]:
    """For each clip that looks like an earlier one, the index of the first such clip.

    `hashes` are hex strings of one length, None for a clip without a decoded frame. Two clips look
    the same if at most `max_distance` bits of their hashes differ. Time is quadratic in the number
    of clips (one or two minutes for 100,000), memory is linear.
    """
    indices = [index for index, value in enumerate(hashes) if value is not None]
    if not indices:
        return {}
    raw = b"".join(bytes.fromhex(str(hashes[index])) for index in indices)
    bits = np.unpackbits(np.frombuffer(raw, np.uint8).reshape(len(indices), -1), axis=1)
    signs = bits.astype(np.float32) * 2 - 1  # equal bits contribute 1 to the dot product, others -1
    num_bits = signs.shape[1]
    found = {}
    for start in range(0, len(indices), _ROWS_AT_ONCE):
        rows = signs[start : start + _ROWS_AT_ONCE]
        distances = (num_bits - rows @ signs[: start + len(rows)].T) / 2
        for offset, row in enumerate(distances):
            near = np.flatnonzero(row[: start + offset] <= max_distance)
            if near.size:
                found[indices[start + offset]] = indices[int(near[0])]
    return found
