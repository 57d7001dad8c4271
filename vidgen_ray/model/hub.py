"""The folder of a checkpoint from the hub: the cache where it suffices, else a download."""

import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import OfflineModeIsEnabled

from vidgen_ray.addresses import one_line
from vidgen_ray.config import ModelConfig
from vidgen_ray.errors import ConfigError
from vidgen_ray.model.weights import PARTS

logger = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")
# What the user can do, by the exception's class or a piece of its text; the first that fits.
_ADVICE = {
    "GatedRepoError": "accept its terms on the hub and set HF_TOKEN",
    "RevisionNotFoundError": "check model.revision",
    "RepositoryNotFoundError": "check the name; a private repository needs HF_TOKEN",
    "429": "the hub limits the rate: try later, or set HF_TOKEN",
    "socksio": "ALL_PROXY names a SOCKS proxy: pip install socksio, or set HTTPS_PROXY",
    "ProxyError": "check HTTPS_PROXY and its user and password",
    "CERTIFICATE_VERIFY_FAILED": "set SSL_CERT_FILE to the certificates of your network",
    "local_files_only": "run `vidgen prefetch` without HF_HUB_OFFLINE first",
}


def find_snapshot(
    model: ModelConfig,
    *,
    weights: bool,
    local_files_only: bool,
    is_complete: Callable[[Path], bool],
) -> Path:
    """The snapshot folder of `model.checkpoint` at `model.revision`; its name is the commit.

    Only what is missing is downloaded: a pinned commit that is complete in the cache needs no
    network, and a hub that fails is only a warning where the cache is complete. `weights=False`
    gets the small files alone. Raises ConfigError.
    """
    patterns = ["*.json", "tokenizer/*"] + [f"{part}/*.safetensors" for part in PARTS] * weights

    def download(*, offline: bool) -> Path:
        return Path(
            snapshot_download(
                model.checkpoint,
                revision=model.revision,
                cache_dir=cache_folder(),
                allow_patterns=patterns,
                local_files_only=offline,
            )
        )

    cached, not_cached = None, None
    try:
        cached = download(offline=True)
    except Exception as error:  # nothing, or only a part of it
        not_cached = error
    complete = cached is not None and is_complete(cached)
    if cached and (local_files_only or (complete and _COMMIT.fullmatch(model.revision or ""))):
        return cached
    try:
        return download(offline=local_files_only)
    except Exception as error:  # the hub's and httpx's errors, ImportError, OSError, ValueError
        if not_cached and any(isinstance(each, OfflineModeIsEnabled) for each in _causes(error)):
            error = not_cached  # names what is missing
        if cached and complete:
            logger.warning(
                "%s: the hub did not answer (%s); the cached %s is used",
                *(model.checkpoint, _reason(error), cached.name),
            )
            return cached
        raise ConfigError(
            f"model.checkpoint: {model.checkpoint} is not in the local cache and the hub did not "
            f"give it: {_reason(error)}; {_advice(error)}, or name a folder"
        ) from None


def cache_folder() -> str:
    """The hub's cache: HF_HUB_CACHE or HF_HOME, else TRANSFORMERS_CACHE, else the default.

    transformers dropped its own variable in version 5; weights that it fetched are still found.
    """
    named = {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"} & set(os.environ)
    former = os.environ.get("TRANSFORMERS_CACHE")
    return former if former and not named else constants.HF_HUB_CACHE


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: Exception) -> str:
    """The deepest cause that the hub's client itself names, in one line."""
    root = error
    while isinstance(root.__cause__, Exception):
        root = root.__cause__
    return one_line(root)[:300]


def _advice(error: Exception) -> str:
    texts = [f"{type(each).__mro__} {one_line(each)}" for each in _causes(error)]
    for mark, advice in _ADVICE.items():
        if any(mark in text for text in texts):
            return advice
    return "check the name and the network"
