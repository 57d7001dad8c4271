"""Find the video files in a folder by the names that datasets give them."""

from pathlib import PurePosixPath

import fsspec

from vidgen_ray.addresses import one_line
from vidgen_ray.datasets.entries import VideoFile
from vidgen_ray.errors import DatasetError

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ts"}
)


def file_name(name: str) -> str:
    """The name of a file that is still missing: `name`, with `.mp4` if it has no video suffix."""
    return name if PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES else f"{name}.mp4"


class VideoIndex:
    """The videos in a folder and its subfolders, found by path or name, with or without suffix."""

    def __init__(self, address: str) -> None:
        """List the folder once and keep the names. Raises DatasetError."""
        self.address = address.rstrip("/")
        try:
            filesystem, root = fsspec.url_to_fs(address)
            if not filesystem.isdir(root):
                raise DatasetError(f"videos: must be a folder that exists, got {address!r}")
            paths = filesystem.find(root)
        except (OSError, ImportError, ValueError) as error:
            raise DatasetError(f"videos: {address!r}: {one_line(error)}") from error
        self._by_stem: dict[str, list[PurePosixPath]] = {}
        for path in sorted(paths):
            inside = PurePosixPath(path).relative_to(root.rstrip("/"))
            if inside.suffix.lower() in VIDEO_SUFFIXES:
                self._by_stem.setdefault(inside.stem, []).append(inside)

    def find(self, files: list[VideoFile]) -> tuple[str, VideoFile] | None:
        """The address of the first of `files` that exists, and which of them it is.

        A name that matches files in several folders is ambiguous and matches none.
        """
        for file in files:
            name = PurePosixPath(file.name)
            stem = name.stem if name.suffix.lower() in VIDEO_SUFFIXES else name.name
            fitting = [path for path in self._by_stem.get(stem, []) if _fits(path, name)]
            exact = [path for path in fitting if path == name]
            found = exact or fitting
            if len({path.parent for path in found}) == 1:
                return f"{self.address}/{found[0]}", file
        return None


def _fits(path: PurePosixPath, name: PurePosixPath) -> bool:
    """Whether one of the two paths ends with the other."""
    if name.suffix.lower() not in VIDEO_SUFFIXES:
        name = name.with_name(f"{name.name}{path.suffix}")
    length = min(len(path.parts), len(name.parts))
    return path.parts[-length:] == name.parts[-length:]
