"""What `make` removes, and what it leaves alone."""

import shutil
import subprocess
from pathlib import Path

MAKEFILE = Path(__file__).parents[1] / "Makefile"
BUILT = [
    ".venv/bin/vidgen",
    "build/lib/vidgen_ray/schema.py",
    "dist/vidgen_ray-0.1.0.tar.gz",
    "vidgen_ray.egg-info/PKG-INFO",
    ".pytest_cache/README.md",
    "vidgen_ray/__pycache__/schema.pyc",
]
OURS = [
    "outputs/samples/clip.mp4",
    "outputs/examples/clip.json",
    "outputs/serving/jobs.db",
    "outputs/__pycache__/kept",
    "checkpoints/press/adapter_final/pytorch_lora_weights.safetensors",
    "loras/press.safetensors",
    "vidgen_ray/schema.py",
]


def test_clean_removes_what_builds_made_and_no_output(tmp_path: Path) -> None:
    for name in [*BUILT, *OURS]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    shutil.copy(MAKEFILE, tmp_path)
    done = subprocess.run(["make", "clean"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [name for name in BUILT if (tmp_path / name).exists()] == []
    assert [name for name in OURS if not (tmp_path / name).exists()] == []
