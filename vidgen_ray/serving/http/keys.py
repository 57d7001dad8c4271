"""API keys: generated once, stored as hashes, compared in constant time, reloaded on change."""

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
from pathlib import Path

import yaml

from vidgen_ray.errors import ConfigError

logger = logging.getLogger("ray.serve")

_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
_HASH = re.compile(r"sha256:([0-9a-f]{64})")
_POLL_S = 1.0


def new_key() -> tuple[str, str]:
    """A new key, and the hash of it that goes into the keys file."""
    # 256 random bits need no slow hash: there is nothing to guess.
    key = f"vg_{secrets.token_urlsafe(32)}"
    return key, f"sha256:{_digest(key)}"


class ApiKeys:
    """Who may use the server."""

    def __init__(self, hashes: list[tuple[str, str]]) -> None:
        """`hashes` are pairs of owner and hexadecimal SHA-256; without any, no key is required."""
        self._hashes = hashes

    @property
    def are_needed(self) -> bool:
        """Whether a request needs a key."""
        return bool(self._hashes)

    def owner_of(self, key: str | None) -> str | None:
        """The owner of a key, None for a wrong one; ``""`` where no key is required."""
        if not self._hashes:
            return ""
        digest = _digest(key or "")
        found = None
        for owner, known in self._hashes:  # all of them, so that timing does not reveal the match
            if hmac.compare_digest(digest, known):
                found = owner
        return found


class KeysFile:
    """The keys of a file as it is now; while it cannot be read, those it held last."""

    def __init__(self, path: str | None) -> None:
        """Raises ConfigError when the file is missing or wrong. None: no key is required."""
        self._path = path
        self._content = _read(path) if path is not None else b""
        self.keys = _parse(path, self._content) if path is not None else ApiKeys([])
        self.problem: str | None = None

    def reload(self) -> None:
        """Read the file again. An unusable change is logged once and kept in `problem`."""
        if self._path is None:
            return
        try:
            content = _read(self._path)
            if content != self._content or self.problem:
                self.keys = _parse(self._path, content)
                self._content = content
                logger.info("API keys reloaded")
            self.problem = None
        except ConfigError as error:
            problem = f"{error}; the keys that were read before stay valid"
            if problem != self.problem:
                logger.error("%s", problem)
            self.problem = problem

    async def run(self) -> None:
        """Reload every second until cancelled."""
        while True:
            await asyncio.sleep(_POLL_S)
            await asyncio.to_thread(self.reload)


def read_keys(path: str | None) -> ApiKeys:
    """Read a keys file. Raises ConfigError, which never shows a key."""
    return KeysFile(path).keys


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        kind = type(error).__name__
        raise ConfigError(f"api_keys_file: cannot be read: {path} ({kind})") from None


def _parse(path: str, content: bytes) -> ApiKeys:
    """Lines `owner: sha256:...` or `owner: [sha256:..., ...]`; an owner may occur repeatedly."""
    try:
        root = yaml.compose(content, Loader=yaml.SafeLoader)
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        kind = type(error).__name__
        raise ConfigError(f"api_keys_file: cannot be read: {path} ({kind})") from None
    if not isinstance(root, yaml.MappingNode) or not root.value:
        raise ConfigError(
            f"api_keys_file: {path} must hold lines `owner: sha256:...`, got none; add one with "
            f"`vidgen key OWNER >> {path}`"
        )
    # The nodes, not a dict: a dict would keep only the last of an owner's lines.
    return ApiKeys(
        [
            (_owner(path, key), hash)
            for key, value in root.value
            for hash in _hashes(path, _owner(path, key), value)
        ]
    )


def _owner(path: str, node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode) or not _OWNER.fullmatch(node.value):
        raise ConfigError(
            f"api_keys_file: an owner must be letters, digits, '.', '_' or '-', in {path}"
        )
    return str(node.value)


def _hashes(path: str, owner: str, node: yaml.Node) -> list[str]:
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not nodes:
        raise ConfigError(
            f"api_keys_file: {owner}: must have at least one key, got none, in {path}; "
            "remove the line, or make a key with `vidgen key`"
        )
    matches = [_HASH.fullmatch(str(entry.value)) for entry in nodes]
    if not all(matches):
        raise ConfigError(
            f"api_keys_file: {owner}: must be sha256: and 64 hexadecimal digits, not the "
            "key itself; make one with `vidgen key`"
        )
    return [match[1] for match in matches if match]


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
