"""What decides a clip's pixels: its profile, and the hash over the request, weights and options."""

import hashlib
import json

from vidgen_ray.config import Config, Profile
from vidgen_ray.errors import RequestError
from vidgen_ray.model.checkpoint import Checkpoint
from vidgen_ray.request import GenerationRequest

_CHANGE_PIXELS = {"attention", "compile", "fuse_vae", "linears", "step_cache"}


def find_profile(request: GenerationRequest, config: Config) -> Profile | None:
    """The profile that an optimized request names, None for a baseline one."""
    if request.mode == "baseline" or request.profile is None:
        return None
    if request.profile not in config.profiles:
        raise RequestError(
            f"profile: must be one of {sorted(config.profiles)}, got {request.profile!r}"
        )
    return config.profiles[request.profile]


def hash_content(
    request: GenerationRequest,
    image_sha256: str,
    adapter_sha256: str | None,
    config: Config,
    checkpoint: Checkpoint,
) -> str:
    """SHA-256 over what decides a clip: two runs with equal hashes make the same one.

    That is the request, the weights and every option that may change pixels. The image and the
    adapter count by their bytes, not by where they lie; offload only moves weights about.
    """
    profile = find_profile(request, config)
    options = config.model.under(profile)
    body = {
        "request": request.model_dump(mode="json", exclude={"image": True, "lora": {"path"}}),
        "image": image_sha256,
        "adapter": adapter_sha256,
        "model": checkpoint.fingerprint,
        "options": options.model_dump(include={"dtype", "scheduler", "vae_tiling"}),
        "speedups": profile.model_dump(include=_CHANGE_PIXELS) if profile else {},
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
