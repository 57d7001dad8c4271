"""Versions of what made a clip, for its record."""

import platform
from functools import lru_cache
from importlib import metadata

import vidgen_ray

_PACKAGES = ("torch", "diffusers", "transformers", "peft", "ray", "av", "numpy")
_OPENCV = ("opencv-contrib-python", "opencv-contrib-python-headless")


@lru_cache
def versions() -> dict[str, str]:
    """Versions of Python, this package and the libraries that touch pixels, by name."""
    found = {"python": platform.python_version(), "vidgen_ray": vidgen_ray.__version__}
    for name in (*_PACKAGES, *_OPENCV):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
