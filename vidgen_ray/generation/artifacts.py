"""The output store: clips and their records in a local folder or at any fsspec address."""

import hashlib
import io
import json
import posixpath
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem
from PIL import Image
from pydantic import ValidationError

from vidgen_ray.addresses import atomic_path, one_line
from vidgen_ray.errors import ArtifactError, VidgenError
from vidgen_ray.schema import RESERVED_IDS, ArtifactRecord, GenerationRecord, Video
from vidgen_ray.video_io import write_video

DISCLOSURE = "Synthetic media: generated from one image by an AI model (vidgen-ray)."

_THUMBNAIL_WIDTH = 480
_STAGING = ".vidgen"


class ArtifactStore:
    """One output address. Every failure to read or write it raises ArtifactError.

    `<id>.mp4` and `thumbnails/<id>.jpg` are written first and the record `<id>.json` last, whole:
    it is the commit mark, and a clip without one does not exist. Rejected attempts are kept in
    `attempts/<id>/` until the clip is committed.
    """

    def __init__(self, address: str) -> None:
        """`address` is a local folder, created if missing, or a URL such as `s3://bucket/run`."""
        with _store_errors("open", address):
            self._fs, self._root = fsspec.url_to_fs(address)
        self.address = address
        self._is_local = isinstance(self._fs, LocalFileSystem)

    def check_writable(self) -> None:
        """Write, read and remove a small file, so that a bad address fails before any clip."""
        name = f"{_STAGING}/probe-{uuid.uuid4().hex}"
        self.write(name, b"vidgen")
        with _store_errors("write to", self.address):
            if self._fs.cat_file(self._path(name)) != b"vidgen":
                raise OSError("the file could not be read back")
            self._fs.rm_file(self._path(name))

    def clear_staging(self) -> None:
        """Remove the partial files of writers that were killed."""
        with _store_errors("clean", self.address):
            if self._fs.exists(self._path(_STAGING)):
                self._fs.rm(self._path(_STAGING), recursive=True)

    def write(self, name: str, data: bytes) -> None:
        """Write `data` to `name`, whole or not at all."""
        with _store_errors("write", self._path(name)):
            if self._is_local:
                with self._staged(name) as path:
                    path.write_bytes(data)
            else:
                self._fs.pipe_file(self._path(name), data)

    def read(self, name: str) -> bytes | None:
        """The bytes at `name`, None if there is no such file."""
        with _store_errors("read", self._path(name)):
            try:
                data: bytes = self._fs.cat_file(self._path(name))
            except FileNotFoundError:
                return None
            return data

    def write_clip(self, name: str, video: Video) -> ArtifactRecord:
        """Encode `video` to `name`, an MP4 file, and describe the file."""
        with _store_errors("write", self._path(name)), self._staged(name) as path:
            write_video(path, video, comment=DISCLOSURE)
            data = path.read_bytes()
        num_frames, height, width, _ = video.frames.shape
        return ArtifactRecord(
            filename=name,
            sha256=hashlib.sha256(data).hexdigest(),
            size_bytes=len(data),
            num_frames=num_frames,
            height=height,
            width=width,
            fps=video.fps,
            codec="h264",
        )

    def write_thumbnail(self, clip_id: str, pixels: np.ndarray) -> None:
        """Write the conditioning image, uint8 [height, width, 3], downscaled for the report."""
        image = Image.fromarray(pixels)
        image.thumbnail((_THUMBNAIL_WIDTH, _THUMBNAIL_WIDTH))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        self.write(f"thumbnails/{clip_id}.jpg", buffer.getvalue())

    def commit(self, record: GenerationRecord) -> None:
        """Write the record, which makes the clip exist, and remove its rejected attempts."""
        self.write(f"{record.id}.json", _encode(record))
        self._remove_attempts(record.id)

    def save_attempt(self, record: GenerationRecord) -> None:
        """Write the record of a rejected attempt, whose clip is at `attempt_name`."""
        assert record.attempt is not None
        name = attempt_name(record.id, record.attempt)
        self.write(name.removesuffix(".mp4") + ".json", _encode(record))

    def promote(self, record: GenerationRecord) -> GenerationRecord:
        """Copy a rejected attempt's clip to its final name; return the record to commit."""
        assert record.artifact is not None
        final = f"{record.id}.mp4"
        with _store_errors("write", self._path(final)):
            self._fs.cp_file(self._path(record.artifact.filename), self._path(final))
        return record.model_copy(
            update={"artifact": record.artifact.model_copy(update={"filename": final})}
        )

    def read_record(self, clip_id: str) -> GenerationRecord | None:
        """The committed record of one id, None if there is none or its clip is not whole."""
        data = self.read(f"{clip_id}.json")
        if data is None:
            return None
        record = _decode(self._path(f"{clip_id}.json"), data)
        if record.artifact is not None:
            path = self._path(record.artifact.filename)
            with _store_errors("read", path):
                try:
                    size = self._fs.info(path)["size"]
                except FileNotFoundError:
                    return None
            if size != record.artifact.size_bytes:
                return None
        return record

    def address_of(self, name: str) -> str:
        """The fsspec address of a file of this store."""
        path = self._path(name)
        return path if self._is_local else str(self._fs.unstrip_protocol(path))

    def local_path(self, name: str) -> Path | None:
        """The path of `name` on this machine, None for a remote store."""
        return Path(self._path(name)) if self._is_local else None

    def fetch(self, name: str, path: Path) -> None:
        """Copy `name` to a local file."""
        with _store_errors("read", self._path(name)):
            self._fs.get_file(self._path(name), str(path))

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder, empty if there is no such folder."""
        return list(self._sizes(folder))

    def times(self, folder: str) -> dict[str, float]:
        """When the files in a folder were written, by name, in seconds since the epoch."""
        entries = self._entries(folder)
        return {name: _written_at(entry) for name, entry in entries.items()}

    def remove(self, clip_id: str) -> None:
        """Remove a clip: its record first, then its files and attempts."""
        for name in (f"{clip_id}.json", f"{clip_id}.mp4", f"thumbnails/{clip_id}.jpg"):
            self.remove_file(name)
        self._remove_attempts(clip_id)

    def remove_file(self, name: str) -> None:
        """Remove a file if it exists."""
        with _store_errors("remove", self._path(name)), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def read_records(self) -> dict[str, GenerationRecord]:
        """Every committed record by id, without those whose clip is missing or truncated."""
        sizes = self._sizes("")
        names = [name for name in sizes if name.endswith(".json") and name[:-5] not in RESERVED_IDS]
        records = {record.id: record for record in self._read_all(names)}
        return {
            clip_id: record
            for clip_id, record in records.items()
            if record.artifact is None
            or sizes.get(record.artifact.filename) == record.artifact.size_bytes
        }

    def ids_with_attempts(self) -> list[str]:
        """Ids that have rejected attempts and no committed record yet."""
        with _store_errors("list", self._path("attempts")):
            try:
                paths: list[str] = self._fs.ls(self._path("attempts"), detail=False)
            except FileNotFoundError:
                return []
        return [posixpath.basename(path.rstrip("/")) for path in paths]

    def read_attempts(self, clip_id: str) -> list[GenerationRecord]:
        """The records of the rejected attempts at `clip_id`, in order."""
        folder = f"attempts/{clip_id}"
        names = [f"{folder}/{name}" for name in self._sizes(folder) if name.endswith(".json")]
        return sorted(self._read_all(names), key=lambda record: record.attempt or 0)

    def _remove_attempts(self, clip_id: str) -> None:
        folder = self._path(f"attempts/{clip_id}")
        with _store_errors("clean", folder):
            self._fs.invalidate_cache(folder)
            if self._fs.exists(folder):
                self._fs.rm(folder, recursive=True)

    def _read_all(self, names: Sequence[str]) -> list[GenerationRecord]:
        with _store_errors("read", self.address):
            contents = self._fs.cat([self._path(name) for name in names]) if names else {}
        return [_decode(path, data) for path, data in contents.items()]

    def _sizes(self, folder: str) -> dict[str, int]:
        """Sizes in bytes of the files in a folder, by name; empty if there is no such folder."""
        return {name: entry["size"] for name, entry in self._entries(folder).items()}

    def _entries(self, folder: str) -> dict[str, dict[str, Any]]:
        """What the file system says of the files in a folder, by name."""
        with _store_errors("list", self._path(folder)):
            self._fs.invalidate_cache(self._path(folder))  # other processes write here too
            try:
                entries: list[dict[str, Any]] = self._fs.ls(self._path(folder), detail=True)
            except FileNotFoundError:
                return {}
            return {
                posixpath.basename(entry["name"]): entry
                for entry in entries
                if entry["type"] == "file"
            }

    def _path(self, name: str) -> str:
        return posixpath.join(self._root, name).rstrip("/")

    @contextmanager
    def _staged(self, name: str) -> Iterator[Path]:
        """A local path to write; its file appears at `name` if the context ends without error."""
        if self._is_local:
            with atomic_path(Path(self._path(name)), Path(self._path(_STAGING))) as path:
                yield path
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / posixpath.basename(name)
            yield path
            self._fs.put_file(str(path), self._path(name))


def attempt_name(clip_id: str, attempt: int) -> str:
    """The name of the clip of a rejected attempt."""
    return f"attempts/{clip_id}/{attempt}.mp4"


def _written_at(entry: dict[str, Any]) -> float:
    """The time of a file; that of now where its file system tells none, so that it looks young."""
    value = entry.get("mtime", entry.get("LastModified", entry.get("updated")))
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return value.timestamp()
    return float(value) if value is not None else time.time()


def _encode(record: GenerationRecord) -> bytes:
    return (record.model_dump_json(indent=2) + "\n").encode()


def _decode(path: str, data: bytes) -> GenerationRecord:
    try:
        return GenerationRecord.model_validate(json.loads(data))
    except (ValueError, ValidationError) as error:
        raise ArtifactError(
            f"output: {path} is not a record of this program: {one_line(error)}; "
            "move it away, or choose another --output"
        ) from None


@contextmanager
def _store_errors(action: str, path: str) -> Iterator[None]:
    """Turn any exception of a file system into one ArtifactError that says what to do."""
    try:
        yield
    except VidgenError:
        raise
    except ImportError as error:
        raise ArtifactError(
            f"output: cannot {action} {path}: {error}; install the package it names"
        ) from None
    except Exception as error:  # object stores raise errors of their own libraries
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ArtifactError(
            f"output: cannot {action} {path}: {reason}; check the address, its permissions and "
            "its free space, then run the same command again: finished clips are kept"
        ) from error
