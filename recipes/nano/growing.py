"""Initialise a model with the weights of one that has fewer latent channels."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor


def grown(
    old: Mapping[str, Tensor], fresh: Mapping[str, Tensor], halves: Collection[str] = ()
) -> dict[str, Tensor]:
    """`old` in tensors of the sizes of `fresh`, padded with zeros.

    For a tensor named in `halves` the first dimension that grows holds two halves (means, log-
    variances), which grow separately. Raises ValueError if `old` is larger.
    """
    return {name: _grown(name, old[name], like, name in halves) for name, like in fresh.items()}


def _grown(name: str, old: Tensor, like: Tensor, in_halves: bool) -> Tensor:
    if old.ndim != like.ndim or any(a > b for a, b in zip(old.shape, like.shape, strict=True)):
        raise ValueError(f"{name}: must grow to {tuple(like.shape)}, but is {tuple(old.shape)}")
    if in_halves and old.shape != like.shape:
        pairs = zip(old.shape, like.shape, strict=True)
        dim = next(index for index, (a, b) in enumerate(pairs) if a != b)
        parts = zip(old.chunk(2, dim), like.chunk(2, dim), strict=True)
        return torch.cat([_grown(name, a, b, False) for a, b in parts], dim)
    new = torch.zeros_like(like)
    new[tuple(slice(extent) for extent in old.shape)] = old
    return new
