"""Whether a server may be open to the network."""

from vidgen_ray.errors import ConfigError
from vidgen_ray.serving.arguments import ServingArguments
from vidgen_ray.serving.http.keys import ApiKeys

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def check_exposure(host: str | None, arguments: ServingArguments, keys: ApiKeys) -> None:
    """Refuse to be open to a network without API keys, unless told to. Raises ConfigError."""
    if host in _LOOPBACK or keys.are_needed or arguments.allow_open_network:
        return
    raise ConfigError(
        f"http_options.host: {host!r} is open to the network, but there are no API keys; set "
        "api_keys_file (see `vidgen key`), bind 127.0.0.1, or set allow_open_network: true"
    )
