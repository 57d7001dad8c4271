#!/usr/bin/env bash
# Makes the environment in $VENV and installs this project: scripts/setup.sh . | ".[dev]"
set -euo pipefail
cd "$(dirname "$0")/.."
target=$1 venv=${VENV:-.venv} python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo "python 3.11 or newer is needed, got $("$python" --version)" >&2; exit 1; }
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" ||
  { echo "cannot make $venv; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }

echo "installing into $venv: torch, Ray, diffusers and more, a few minutes"
# A GPU host takes torch's default CUDA build, any other the CPU build where an index offers one.
pip=("$venv/bin/python" -m pip --disable-pip-version-check)
"${pip[@]}" install --quiet --constraint constraints.txt --editable "$target"

# OpenCV's usual build wants the system's libGL. Where that is missing, the headless build of the
# same version does the same work.
if ! "$venv/bin/python" -c 'import cv2' 2>/dev/null; then
  version=$("${pip[@]}" show opencv-contrib-python | sed -n 's/^Version: //p')
  echo "OpenCV needs libGL, which this system lacks: installing opencv-contrib-python-headless $version"
  "${pip[@]}" uninstall --quiet --yes opencv-contrib-python
  "${pip[@]}" install --quiet "opencv-contrib-python-headless==$version"
  "$venv/bin/python" -c 'import cv2'
fi
