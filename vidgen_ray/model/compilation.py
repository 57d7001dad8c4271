"""Block-wise torch.compile, with compiled artifacts cached across processes and nodes."""

import hashlib
import json
import logging
import platform
from pathlib import Path

import torch
from diffusers import CogVideoXTransformer3DModel

from vidgen_ray.addresses import atomic_path

logger = logging.getLogger(__name__)


def compile_blocks(transformer: CogVideoXTransformer3DModel, *, fullgraph: bool) -> None:
    """Compile each block separately: they are identical, so one compilation serves all.

    `fullgraph` raises on graph breaks, which offloading hooks cannot avoid.
    """
    for block in transformer.transformer_blocks:
        block.compile(fullgraph=fullgraph, dynamic=False)


class CompileCache:
    """torch.compile artifacts in files, one per GPU type, set of versions and model.

    torch's own cache is on the local disk; this folder can be shared by all nodes.
    """

    def __init__(self, folder: str, device: torch.device, subject: str) -> None:
        """`subject` identifies what is compiled: an architecture and its options."""
        self._file = Path(folder).expanduser() / f"{_key(device, subject)}.bin"
        self._loaded = False

    def load(self) -> bool:
        """Load the artifacts of an earlier process; returns whether there were any."""
        try:
            content = self._file.read_bytes()
        except OSError:
            return False
        try:
            self._loaded = torch.compiler.load_cache_artifacts(content) is not None
        except Exception as error:  # a damaged file can raise anything: compile again
            logger.warning("%s cannot be loaded and will be rebuilt: %s", self._file, error)
            self._loaded = False
        return self._loaded

    def save(self) -> None:
        """Save what this process compiled, unless `load` found it."""
        if self._loaded:
            return
        saved = torch.compiler.save_cache_artifacts()
        if saved is None:
            return
        try:
            with atomic_path(self._file) as partial:
                partial.write_bytes(saved[0])
        except OSError as error:  # not fatal: the next start compiles again
            logger.warning(
                "%s cannot be written, so the next start will compile again: %s", self._file, error
            )
        self._loaded = True


def _key(device: torch.device, subject: str) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    facts = [torch.__version__, torch.version.cuda, platform.python_version(), name, subject]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
