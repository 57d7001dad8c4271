"""Compiled blocks, and a folder of what compiling made, for the next process and other nodes."""

import hashlib
import json
import logging
import platform
from pathlib import Path

import torch
from diffusers import CogVideoXTransformer3DModel

from vidgen_ray.addresses import atomic_path

logger = logging.getLogger(__name__)


def compile_blocks(transformer: CogVideoXTransformer3DModel, *, whole: bool) -> None:
    """Compile each block by itself: they are alike, so that one compilation serves all.

    `whole`: a block that cannot become one graph is an error. Hooks that stream weights cannot.
    """
    for block in transformer.transformer_blocks:
        block.compile(fullgraph=whole, dynamic=False)


class CompileCache:
    """Files that hold what torch compiled, one for each machine type, set of versions and model.

    torch keeps a cache of its own on the local disk; this one can lie where all nodes see it.
    """

    def __init__(self, folder: str, device: torch.device, subject: str) -> None:
        """`subject` names what is compiled: an architecture and its options."""
        self._file = Path(folder).expanduser() / f"{_key(device, subject)}.bin"
        self._loaded = False

    def load(self) -> bool:
        """Take over what an earlier process compiled; whether there was anything."""
        try:
            content = self._file.read_bytes()
        except OSError:
            return False
        try:
            self._loaded = torch.compiler.load_cache_artifacts(content) is not None
        except Exception as error:  # whatever a damaged file makes of it: compile again
            logger.warning("%s is of no use and is made again: %s", self._file, error)
            self._loaded = False
        return self._loaded

    def save(self) -> None:
        """Keep what this process compiled, unless it found it all there."""
        if self._loaded:
            return
        saved = torch.compiler.save_cache_artifacts()
        if saved is None:
            return
        try:
            with atomic_path(self._file) as partial:
                partial.write_bytes(saved[0])
        except OSError as error:  # a folder that cannot be written costs the next start its time
            logger.warning("%s cannot be written: %s", self._file, error)
        self._loaded = True


def _key(device: torch.device, subject: str) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    facts = [torch.__version__, torch.version.cuda, platform.python_version(), name, subject]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
