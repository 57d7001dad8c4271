"""Clips that look the same, by the distance of their perceptual hashes."""

from collections.abc import Sequence

import numpy as np

_ROWS_AT_ONCE = 256


def find_duplicates(hashes: Sequence[str | None], max_distance: int) -> dict[int, int]:
    """For each clip that looks like an earlier one, the index of the first such clip.

    `hashes` are hex digits of one length, None where there is no picture. Two clips look the same
    if `max_distance` bits of their hashes differ at most. Takes time with the square of the number
    of clips (100,000 in a minute or two), memory with the number.
    """
    indices = [index for index, value in enumerate(hashes) if value is not None]
    if not indices:
        return {}
    raw = b"".join(bytes.fromhex(str(hashes[index])) for index in indices)
    bits = np.unpackbits(np.frombuffer(raw, np.uint8).reshape(len(indices), -1), axis=1)
    signs = bits.astype(np.float32) * 2 - 1  # equal bits give 1 in a product, others -1
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
