"""API keys: made once, kept as hashes, compared in constant time."""

import hashlib
import hmac
import re
import secrets
from pathlib import Path

import yaml

from vidgen_ray.errors import ConfigError

_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
_HASH = re.compile(r"sha256:([0-9a-f]{64})")


def new_key() -> tuple[str, str]:
    """A new key, and the hash of it that goes into the keys file."""
    # 256 random bits need no slow hash: there is nothing to guess.
    key = f"vg_{secrets.token_urlsafe(32)}"
    return key, f"sha256:{_digest(key)}"


class ApiKeys:
    """Who may ask. The file is YAML: `owner: sha256:...`, or a list of hashes for an owner."""

    def __init__(self, hashes: list[tuple[str, str]]) -> None:
        """`hashes` are pairs of owner and hexadecimal SHA-256; none lets everybody in."""
        self._hashes = hashes

    @property
    def are_needed(self) -> bool:
        """Whether a request needs a key."""
        return bool(self._hashes)

    def owner_of(self, key: str | None) -> str | None:
        """The owner of a key, None for a wrong one. Without any keys everybody is ``""``."""
        if not self._hashes:
            return ""
        digest = _digest(key or "")
        found = None
        for owner, known in self._hashes:  # all of them: the time says nothing of the place
            if hmac.compare_digest(digest, known):
                found = owner
        return found


def read_keys(path: str | None) -> ApiKeys:
    """Read a keys file. Raises ConfigError, which never shows a key."""
    if path is None:
        return ApiKeys([])
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        kind = type(error).__name__
        raise ConfigError(f"api_keys_file: cannot be read: {path} ({kind})") from None
    if not isinstance(tree, dict) or not tree:
        raise ConfigError(
            f"api_keys_file: {path} must hold lines `owner: sha256:...`; make one with `vidgen key`"
        )
    hashes = []
    for owner, values in tree.items():
        if not isinstance(owner, str) or not _OWNER.fullmatch(owner):
            raise ConfigError(
                f"api_keys_file: an owner must be letters, digits, '.', '_' or '-', in {path}"
            )
        for value in values if isinstance(values, list) else [values]:
            match = _HASH.fullmatch(str(value))
            if match is None:
                raise ConfigError(
                    f"api_keys_file: {owner}: must be sha256: and 64 hexadecimal digits, not the "
                    "key itself; make one with `vidgen key`"
                )
            hashes.append((owner, match[1]))
    return ApiKeys(hashes)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
