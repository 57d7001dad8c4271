"""Imported first by every job: one line where the cluster runs it with another Python."""

import sys
from importlib.util import find_spec

_MISSING = [name for name in ("ray", "torch", "typer") if find_spec(name) is None]
if _MISSING:
    sys.exit(
        f"error: {sys.executable} has no {', '.join(_MISSING)}: a Ray job runs the first `python` "
        "of the PATH that Ray was started with; start Ray in the activated environment "
        "(`source .venv/bin/activate && ray start --head`), or submit with the path of its Python"
    )
