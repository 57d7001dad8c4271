"""Which video files there are, found by the names that datasets give them."""

from pathlib import PurePosixPath

import fsspec

from vidgen_ray.addresses import one_line
from vidgen_ray.datasets.entries import VideoFile
from vidgen_ray.errors import DatasetError

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ts"}
)


def file_name(name: str) -> str:
    """The name of a file that is not there yet: MP4, unless `name` says otherwise."""
    return name if PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES else f"{name}.mp4"


class VideoIndex:
    """The videos in a folder and below it, by path inside it and by bare name."""

    def __init__(self, address: str) -> None:
        """List the folder once; what a file costs here is its name. Raises DatasetError."""
        self.address = address.rstrip("/")
        try:
            filesystem, root = fsspec.url_to_fs(address)
            if not filesystem.isdir(root):
                raise DatasetError(f"videos: must be a folder that exists, got {address!r}")
            paths = filesystem.find(root)
        except (OSError, ImportError, ValueError) as error:
            raise DatasetError(f"videos: {address!r}: {one_line(error)}") from error
        self._by_name: dict[str, str] = {}
        for path in sorted(paths):
            inside = PurePosixPath(path).relative_to(root.rstrip("/"))
            if inside.suffix.lower() in VIDEO_SUFFIXES:
                for name in (str(inside), str(inside.with_suffix("")), inside.name, inside.stem):
                    self._by_name.setdefault(name, str(inside))

    def find(self, files: list[VideoFile]) -> tuple[str, VideoFile] | None:
        """The address of the first of `files` that is here, and which of them it is."""
        for file in files:
            plain = str(PurePosixPath(file.name))  # "./a.mp4" is "a.mp4"
            for name in (plain, PurePosixPath(plain).name):
                if name in self._by_name:
                    return f"{self.address}/{self._by_name[name]}", file
        return None
