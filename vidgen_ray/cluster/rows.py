"""Rows of a Ray Data pipeline, each as soon as its block is ready."""

from collections.abc import Iterator
from typing import Any

import ray.data


def iter_rows_as_ready(dataset: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """Yield rows block by block; prefetching would hold back rows that are ready."""
    for table in dataset.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
        yield from table.to_pylist()
