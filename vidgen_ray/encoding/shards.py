"""The format of encoded clips: Parquet shards of safetensors bytes and a list of clips."""

import hashlib
import io
import json
import posixpath
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError
from safetensors.torch import load, save
from torch import Tensor

from vidgen_ray.config import DtypeSetting, Section
from vidgen_ray.errors import DatasetError
from vidgen_ray.schema import ClipSource

Outcome = Literal["encoded", "reused", "skipped", "rejected"]

CLIPS_NAME, SETTINGS_NAME = "clips.jsonl", "encoding.json"
LATENTS, PROMPTS = "latents", "prompts"
EMPTY_PROMPT = ""

# 2: frames have square pixels. Part of the key, so that clips read otherwise are encoded again.
_READER_VERSION = 2
_NUM_READERS = 16  # shard footers read at once from an object store
_NUM_OPEN_SHARDS = 32


class ClipEntry(Section):
    """A line of `clips.jsonl`: a row of the metadata with the keys of its tensors, or a reason."""

    id: str
    prompt: str
    outcome: Outcome
    reason: str | None = None
    latents: str | None = None  # keys, None for a clip that was not encoded
    prompt_key: str | None = None
    truncated: bool = False  # the prompt has more tokens than the model reads
    source: ClipSource


class EncodingSettings(Section):
    """Everything besides the clips that determines the tensors: a change encodes them again."""

    num_frames: int
    height: int
    width: int
    fps: int
    image_fit: Literal["crop", "pad"]
    dtype: DtypeSetting  # of `auto`, each worker takes what fits its device
    num_noised_images: int
    vae_tiling: bool
    vae: str  # fingerprints of the parts
    text_encoder: str
    tokenizer: str

    def latents_key(self, video_sha256: str, start_s: float | None, image_sha256: str) -> str:
        """The key of a clip, from the hashes of its files; `image_sha256` is empty without one."""
        prompt_fields = {"text_encoder", "tokenizer"}
        settings = self.model_dump(mode="json", exclude=prompt_fields)
        clip = [video_sha256, float(start_s or 0), image_sha256]
        return _digest([_READER_VERSION, settings, *clip])

    def prompt_key(self, prompt: str) -> str:
        """The key of a prompt."""
        settings = self.model_dump(include={"text_encoder", "tokenizer", "dtype"})
        return _digest([settings, prompt])


@dataclass(frozen=True)
class EncodedClip:
    """The tensors of a clip, unscaled, in the dtype they were encoded in.

    `posterior` is [2 * channels, T, h, w], mean and log-variance; `image_posteriors` is
    [1 + num_noised, 2 * channels, h, w], the clean image first; `prompt_embeds` is [tokens, width].
    """

    posterior: Tensor
    image_posteriors: Tensor
    prompt_embeds: Tensor


def latents_row(key: str, posterior: Tensor, images: Tensor, picture: bytes) -> dict[str, Any]:
    """A row of a latents shard; `picture` is the conditioning image as a PNG file.

    `posterior` is [2 * channels, T, h, w], `images` [1 + num_noised, 2 * channels, h, w].
    """
    channels, num_frames, height, width = posterior.shape
    return {
        "key": key,
        "dtype": str(posterior.dtype).removeprefix("torch."),
        "shape": [channels, num_frames, height, width],
        "num_images": len(images),
        "tensors": save({"posterior": posterior.contiguous(), "images": images.contiguous()}),
        "picture": picture,
    }


def prompt_row(key: str, prompt: str, embeds: Tensor, num_tokens: int) -> dict[str, Any]:
    """A row of a prompts shard; `embeds` is [tokens, width]."""
    return {
        "key": key,
        "dtype": str(embeds.dtype).removeprefix("torch."),
        "shape": list(embeds.shape),
        "prompt": prompt,
        "num_tokens": num_tokens,
        "tensors": save({"prompt_embeds": embeds.contiguous()}),
    }


def shard_bytes(rows: Sequence[dict[str, Any]]) -> tuple[str, bytes]:
    """The name and content of the shard of `rows`; a row is a row group, to be read alone.

    The name is a hash of the keys. The tensors are safetensors bytes, because Parquet has no
    bfloat16.
    """
    sink = io.BytesIO()
    # Latents do not compress.
    pq.write_table(pa.Table.from_pylist(list(rows)), sink, row_group_size=1, compression="none")
    names = hashlib.sha256("\n".join(row["key"] for row in rows).encode()).hexdigest()
    return f"{names[:32]}.parquet", sink.getvalue()


def read_keys(address: str, kind: str) -> dict[str, tuple[str, int]]:
    """Shard and row number of each key of `kind` (LATENTS or PROMPTS). Raises DatasetError.

    Shards are written atomically, so every shard that exists is readable.
    """
    filesystem, root = fsspec.url_to_fs(address)
    folder = posixpath.join(root, kind)
    if not filesystem.exists(folder):
        return {}
    filesystem.invalidate_cache()
    shards = sorted(
        path for path in filesystem.ls(folder, detail=False) if path.endswith("parquet")
    )

    def keys_of(path: str) -> list[str]:
        try:
            with filesystem.open(path, "rb") as file:
                keys: list[str] = pq.read_table(file, columns=["key"])["key"].to_pylist()
                return keys
        except (OSError, pa.ArrowException) as error:
            raise DatasetError(
                f"latents: {path} cannot be read: {error}; remove it and encode again"
            ) from error

    with ThreadPoolExecutor(_NUM_READERS) as pool:
        found = zip(shards, pool.map(keys_of, shards), strict=True)
        return {key: (path, row) for path, keys in found for row, key in enumerate(keys)}


def read_long_prompts(address: str) -> set[str]:
    """Keys of the prompts that were truncated: they have more tokens than the model reads."""
    filesystem, _ = fsspec.url_to_fs(address)
    long: set[str] = set()
    for path in {path for path, _ in read_keys(address, PROMPTS).values()}:
        with filesystem.open(path, "rb") as file:
            rows = pq.read_table(file, columns=["key", "num_tokens", "shape"]).to_pylist()
        long |= {row["key"] for row in rows if row["num_tokens"] > row["shape"][0]}
    return long


def read_entries(address: str) -> list[ClipEntry]:
    """The lines of `clips.jsonl`. Raises DatasetError if encoding has not finished."""
    path = posixpath.join(address, CLIPS_NAME)
    try:
        with fsspec.open(path, "rt", encoding="utf-8") as file:
            return [ClipEntry.model_validate_json(line) for line in file if line.strip()]
    except FileNotFoundError:
        raise DatasetError(
            f"latents: {address} has no {CLIPS_NAME}, so encoding has not finished; run "
            "`vidgen encode` again to resume it"
        ) from None
    except (OSError, ValueError, ValidationError) as error:
        raise DatasetError(f"latents: {path} cannot be read: {error}; encode again") from error


def read_settings(address: str) -> EncodingSettings:
    """The settings a folder was encoded with. Raises DatasetError."""
    path = posixpath.join(address, SETTINGS_NAME)
    try:
        with fsspec.open(path, "rt", encoding="utf-8") as file:
            return EncodingSettings.model_validate_json(file.read())
    except (OSError, ValueError) as error:
        raise DatasetError(f"latents: {path} cannot be read: {error}; encode again") from error


def entries_bytes(entries: Iterable[ClipEntry]) -> bytes:
    """The content of `clips.jsonl`."""
    return "".join(entry.model_dump_json(exclude_none=True) + "\n" for entry in entries).encode()


class EncodedClips:
    """The clips of an encoded folder or fsspec address that can be trained on, in a fixed order."""

    def __init__(self, address: str) -> None:
        """Read the list and the shards' keys. Raises DatasetError if anything is missing."""
        self._filesystem, _ = fsspec.url_to_fs(address)
        self.entries = [entry for entry in read_entries(address) if entry.latents]
        self.settings = read_settings(address)
        if not self.entries:
            raise DatasetError(
                f"latents: {address} holds no encoded clip; see the reasons in its {CLIPS_NAME}"
            )
        self._places = {kind: read_keys(address, kind) for kind in (LATENTS, PROMPTS)}
        for entry in self.entries:
            for kind, key in ((LATENTS, entry.latents), (PROMPTS, entry.prompt_key)):
                if key not in self._places[kind]:
                    raise DatasetError(
                        f"latents: {address} lacks the {kind} of clip {entry.id}; run "
                        "`vidgen encode` again"
                    )
        self._open = lru_cache(_NUM_OPEN_SHARDS)(self._open_shard)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def fingerprint(self) -> str:
        """Changes with the clips, their order, their prompts and how they were encoded."""
        keys = (f"{entry.latents} {entry.prompt_key}" for entry in self.entries)
        return hashlib.sha256("\n".join(keys).encode()).hexdigest()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape [channels, T, h, w] of the first clip's latents."""
        channels, *rest = self.row(LATENTS, self.entries[0].latents, ["shape"])["shape"]
        return channels // 2, rest[0], rest[1], rest[2]

    def read(self, index: int) -> EncodedClip:
        """The tensors of the clip at `index`."""
        entry = self.entries[index]
        latents = load(self.row(LATENTS, entry.latents, ["tensors"])["tensors"])
        prompt = load(self.row(PROMPTS, entry.prompt_key, ["tensors"])["tensors"])
        return EncodedClip(latents["posterior"], latents["images"], prompt["prompt_embeds"])

    def empty_prompt_embeds(self) -> Tensor:
        """Embeddings [tokens, width] of the empty prompt."""
        row = self.row(PROMPTS, self.settings.prompt_key(EMPTY_PROMPT), ["tensors"])
        embeds: Tensor = load(row["tensors"])["prompt_embeds"]
        return embeds

    def picture(self, index: int) -> bytes:
        """The conditioning image of a clip, a PNG file."""
        picture: bytes = self.row(LATENTS, self.entries[index].latents, ["picture"])["picture"]
        return picture

    def row(self, kind: str, key: str | None, columns: list[str]) -> dict[str, Any]:
        """The `columns` of the row with `key`."""
        assert key is not None
        path, number = self._places[kind][key]
        try:
            row: dict[str, Any] = self._open(path).read_row_group(number, columns).to_pylist()[0]
        except (OSError, pa.ArrowException) as error:
            raise DatasetError(
                f"latents: {path} cannot be read: {error}; remove it and encode again"
            ) from error
        return row

    def _open_shard(self, path: str) -> pq.ParquetFile:
        return pq.ParquetFile(self._filesystem.open(path, "rb"))


def _digest(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
