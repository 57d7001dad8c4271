"""Fetch the openly licensed training images listed in images.csv from public packages."""

import csv
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Annotated

import av
import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vidgen_ray.addresses import atomic_path

LIST = Path(__file__).with_name("images.csv")
CACHE = Path.home() / ".cache" / "vidgen-nano-images"
LONGEST_SIDE = 1152
SHORTEST_SIDE = 192
JPEG_QUALITY = 92
LUMINANCE = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)  # ITU-R BT.709


@dataclass(frozen=True)
class Picture:
    """One row of images.csv without the columns that credit the author."""

    file: str
    split: str
    package: str
    version: str
    path: str
    region: str


class PictureError(Exception):
    """A package, or an image inside one, that is not available."""


def main(
    output_folder: Annotated[Path, typer.Argument(help="gets train/ and held_out/")],
    clips: Annotated[Path | None, typer.Option(help="folder of the clips: packages")] = None,
    cache: Annotated[Path, typer.Option(help="keeps the unpacked packages")] = CACHE,
) -> None:
    """Write every image that does not exist yet; exits with 1 if one is not available."""
    problems = write_pictures(read_list(), output_folder, clips, cache)
    for problem in problems:
        typer.echo(problem, err=True)
    raise typer.Exit(1 if problems else 0)


def read_list(path: Path = LIST) -> list[Picture]:
    """The rows of images.csv, ordered by package."""
    with path.open(encoding="utf-8", newline="") as lines:
        rows = [
            Picture(**{field: row[field] for field in Picture.__dataclass_fields__})
            for row in csv.DictReader(lines)
        ]
    return sorted(rows, key=_package_of)


def write_pictures(
    pictures: list[Picture], output_folder: Path, clips: Path | None, cache: Path
) -> list[str]:
    """Write the missing images package by package; returns the problems."""
    problems: list[str] = []
    missing = [row for row in pictures if not (output_folder / row.split / row.file).exists()]
    for (package, version), rows in groupby(missing, key=_package_of):
        try:
            folder = _unpacked(package, version, clips, cache)
        except PictureError as error:
            problems.append(str(error))
            continue
        for row in rows:
            try:
                _save(_cut(folder, row), output_folder / row.split / row.file)
            except (PictureError, OSError, ValueError, av.FFmpegError) as error:
                problems.append(f"{row.file}: {package} {row.path}: {error}")
    return problems


def _package_of(row: Picture) -> tuple[str, str]:
    return row.package, row.version


def _unpacked(package: str, version: str, clips: Path | None, cache: Path) -> Path:
    """The folder with the package's files, downloaded if the cache lacks it."""
    source, name = package.split(":", 1)
    if source == "clips":
        if clips is None:
            raise PictureError(f"{package}: name the folder of the clips with --clips")
        return clips
    folder = cache / source / f"{name.replace('/', '+')}_{version.replace(':', '+')}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            unpacked = Path(scratch) / "unpacked"
            _download(source, name, version, Path(scratch), unpacked)
            unpacked.rename(folder)  # a package is in the cache whole or not at all
    return folder


def _download(source: str, name: str, version: str, scratch: Path, unpacked: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    commands = {
        "deb": ["apt-get", "download", f"{name}={version}"],
        "pypi": [*pip, "--only-binary=:all:", f"{name}=={version}"],
        "npm": ["npm", "pack", "--silent", f"{name}@{version}"],
    }
    unpackers: dict[str, Callable[[Path, Path], None]] = {
        "deb": _unpack_deb,
        "pypi": _unpack_wheel,
        "npm": _unpack_tarball,
    }
    try:
        subprocess.run(commands[source], cwd=scratch, check=True, capture_output=True)
        (archive,) = scratch.iterdir()
        unpackers[source](archive, unpacked)
    except (subprocess.CalledProcessError, OSError, ValueError, KeyError) as error:
        reason = getattr(error, "stderr", b"") or str(error).encode()
        last_line = reason.decode(errors="replace").strip().splitlines()[-1:]
        raise PictureError(f"{source}:{name} {version}: {' '.join(last_line)}") from error


def _unpack_deb(archive: Path, unpacked: Path) -> None:
    subprocess.run(["dpkg-deb", "-x", archive, unpacked], check=True, capture_output=True)


def _unpack_wheel(archive: Path, unpacked: Path) -> None:
    with zipfile.ZipFile(archive) as wheel:
        wheel.extractall(unpacked)


def _unpack_tarball(archive: Path, unpacked: Path) -> None:
    with tarfile.open(archive) as tarball:
        tarball.extractall(unpacked, filter="data")


def _cut(folder: Path, row: Picture) -> Image.Image:
    """The row's region of its source picture, as RGB in the source's own resolution."""
    path = (folder / row.path).resolve()
    if not path.is_relative_to(folder.resolve()):  # a link may point out of the package
        raise PictureError("leads out of the package")
    if not path.is_file():
        raise PictureError("no such file in the package")
    kind, _, numbers = row.region.rpartition(":")
    if kind == "frame":
        return _frame(path, int(numbers))
    if kind == "view":
        yaw, pitch, fov = (float(number) for number in numbers.split(","))
        return _view(_panorama(path), yaw, pitch, fov)
    image = _still(path, "white")
    if not numbers:
        return image
    left, top, width, height = (float(number) for number in numbers.split(","))
    box = np.array([left, top, left + width, top + height]) * np.tile(image.size, 2)
    x0, y0, x1, y1 = (round(edge) for edge in box.tolist())
    return image.crop((x0, y0, x1, y1))


def _still(path: Path, background: str) -> Image.Image:
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    canvas = Image.new("RGBA", image.size, background)
    return Image.alpha_composite(canvas, image).convert("RGB")


def _frame(path: Path, index: int) -> Image.Image:
    with av.open(path) as container:
        frame = next(islice(container.decode(video=0), index, None), None)
        if frame is None:
            raise PictureError(f"the clip has no frame {index}")
        image: Image.Image = frame.to_image()
        return image.rotate(frame.rotation, expand=True)


def _panorama(path: Path) -> NDArray[np.float32]:
    """An equirectangular panorama as display RGB in 0..1, shape (height, width, 3)."""
    if path.suffix != ".exr":
        # Black, because the panoramas with a transparent sky were taken without air.
        return np.asarray(_still(path, "black")).astype(np.float32) / np.float32(255)
    with av.open(path) as container:
        radiance = next(container.decode(video=0)).to_ndarray(format="gbrpf32le")
    return _tone_mapped(radiance.astype(np.float32))


def _tone_mapped(radiance: NDArray[np.float32]) -> NDArray[np.float32]:
    """Linear radiance as display RGB, by the global operator of Reinhard et al. 2002."""
    key = 0.18
    radiance = np.maximum(radiance, 0)
    luminance = radiance @ LUMINANCE
    scaled = radiance * (key / np.exp(np.log(luminance + 1e-4).mean()))
    white = np.percentile(scaled @ LUMINANCE, 99)
    mapped = scaled * (1 + scaled / white**2) / (1 + scaled)
    display: NDArray[np.float32] = (np.clip(mapped, 0, 1) ** (1 / 2.2)).astype(np.float32)
    return display


def _view(panorama: NDArray[np.float32], yaw: float, pitch: float, fov: float) -> Image.Image:
    """A 4:3 perspective view; angles in degrees, fov is horizontal, positive pitch looks up."""
    height, width = panorama.shape[:2]
    focal = width / (2 * np.pi)  # keeps the panorama's own pixels per radian
    columns = round(2 * focal * np.tan(np.radians(fov) / 2))
    rows = round(columns * 3 / 4)
    x, y = np.meshgrid(np.arange(columns) - (columns - 1) / 2, np.arange(rows) - (rows - 1) / 2)
    tilt = np.radians(pitch)
    up = focal * np.sin(tilt) - y * np.cos(tilt)
    ahead = focal * np.cos(tilt) + y * np.sin(tilt)
    longitude = np.arctan2(x, ahead) + np.radians(yaw)
    latitude = np.arctan2(up, np.hypot(x, ahead))
    map_x = ((longitude / (2 * np.pi) + 0.5) * width % width).astype(np.float32)
    map_y = ((0.5 - latitude / np.pi) * height).astype(np.float32)
    view = cv2.remap(panorama, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return Image.fromarray((view * 255).round().astype(np.uint8))


def _save(image: Image.Image, path: Path) -> None:
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    if min(image.size) < SHORTEST_SIDE:
        raise PictureError(f"{image.width}x{image.height} is below {SHORTEST_SIDE} on a side")
    with atomic_path(path) as partial:
        image.save(partial, format="JPEG", quality=JPEG_QUALITY)


if __name__ == "__main__":
    typer.run(main)
