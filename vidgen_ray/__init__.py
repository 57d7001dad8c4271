"""Image-to-video generation for newsrooms: CogVideoX-5B-I2V in batches and behind HTTP, on Ray.

The names below are the Python API. They load on first use, so that importing the package is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidgen_ray.config import Config, load_config
    from vidgen_ray.errors import VidgenError
    from vidgen_ray.generation.artifacts import ArtifactStore
    from vidgen_ray.generation.clip_engine import ClipEngine, Generation
    from vidgen_ray.generation.engine import Engine
    from vidgen_ray.generation.scoring import score_video
    from vidgen_ray.generation.single import generate_clip
    from vidgen_ray.generation.verdict import judge
    from vidgen_ray.request import GenerationRequest, resolve_request
    from vidgen_ray.schema import GenerationRecord, Video
    from vidgen_ray.video_io import read_video, write_video

__version__ = "0.1.0"

__all__ = [
    "ArtifactStore",
    "ClipEngine",
    "Config",
    "Engine",
    "Generation",
    "GenerationRecord",
    "GenerationRequest",
    "Video",
    "VidgenError",
    "generate_clip",
    "judge",
    "load_config",
    "read_video",
    "resolve_request",
    "score_video",
    "write_video",
]

_MODULES = {
    "ArtifactStore": "vidgen_ray.generation.artifacts",
    "ClipEngine": "vidgen_ray.generation.clip_engine",
    "Config": "vidgen_ray.config",
    "Engine": "vidgen_ray.generation.engine",
    "Generation": "vidgen_ray.generation.clip_engine",
    "GenerationRecord": "vidgen_ray.schema",
    "GenerationRequest": "vidgen_ray.request",
    "VidgenError": "vidgen_ray.errors",
    "Video": "vidgen_ray.schema",
    "generate_clip": "vidgen_ray.generation.single",
    "judge": "vidgen_ray.generation.verdict",
    "load_config": "vidgen_ray.config",
    "read_video": "vidgen_ray.video_io",
    "resolve_request": "vidgen_ray.request",
    "score_video": "vidgen_ray.generation.scoring",
    "write_video": "vidgen_ray.video_io",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
