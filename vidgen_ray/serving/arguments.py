"""The arguments of the application: what `args` in a Serve config file may say."""

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, ConfigDict, Field

from vidgen_ray.config import Section
from vidgen_ray.serving.webhook_url import check_webhook_url


def _webhook_url(url: str) -> str:
    check_webhook_url(url, schemes=("http", "https"))
    return url


def _without_password(url: str) -> str:
    if not is_reference(url) and urlsplit(url).password is not None:
        raise ValueError(
            "must not hold a password, for Ray logs this file; set VIDGEN_DATABASE_URL, or give "
            "env:NAME or file:PATH here"
        )
    return url


def _reference(secret: str) -> str:
    if not is_reference(secret):
        raise ValueError(
            "must not be the secret itself, for Ray logs this file; set VIDGEN_WEBHOOK_SECRET, or "
            "give env:NAME or file:PATH here"
        )
    return secret


def is_reference(value: str) -> bool:
    """Whether `value` says where a secret is, instead of holding it."""
    return value.startswith(("env:", "file:"))


class ServingArguments(Section):
    """`args` of the application. Paths are the head node's; every node must see `output`."""

    model_config = ConfigDict(hide_input_in_errors=True)

    config: str = "cogvideox_5b_i2v"  # a shipped configuration, or a .yaml file
    settings: dict[str, Any] = {}  # section.key: value, over the configuration
    model_id: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,119}$")
    model_aliases: dict[str, str] = {}  # other names of model_id and of adapters: {sora-2: press}
    output: str = Field("outputs/serving", min_length=1)
    # Ray logs what a config file says: a secret is a reference, `env:NAME` or `file:PATH`.
    database: Annotated[str, AfterValidator(_without_password)] | None = Field(
        None, repr=False
    )  # or VIDGEN_DATABASE_URL; default: SQLite
    lora_folder: str | None = None
    api_keys_file: str | None = None  # or VIDGEN_API_KEYS_FILE
    allow_open_network: bool = False  # without API keys on more than loopback
    max_queued_jobs: int = Field(100, ge=1)
    max_queued_jobs_per_owner: int | None = Field(None, ge=1)  # default: 3/4 of max_queued_jobs
    max_dispatched_jobs: int = Field(16, ge=1)  # leased at once; what Serve scales by
    lease_s: float = Field(15, ge=1)
    max_tries: int = Field(3, ge=1, le=20)
    clip_timeout_s: float = Field(3600, gt=0)
    wait_timeout_s: float = Field(3600, gt=0)  # of POST /generate-video
    drain_s: float = Field(300, gt=0)  # below the deployments' graceful_shutdown_timeout_s
    retention_s: float | None = Field(7 * 86_400, gt=0)
    validation_status: Literal[400, 422] = 422  # of a wrong field; some clients expect 400
    max_image_bytes: int = Field(20_000_000, ge=1)
    max_decoded_image_bytes: int = Field(400_000_000, ge=1)  # memory to decode an upload
    fetch_image_urls: bool = False
    webhook_url: Annotated[str, AfterValidator(_webhook_url)] | None = None
    webhook_hosts: list[str] = []  # hosts that a request's own webhook_url may name
    webhook_secret: Annotated[str, AfterValidator(_reference)] | None = Field(
        None, repr=False
    )  # or VIDGEN_WEBHOOK_SECRET
    operators: list[str] = []  # owners of API keys who see the metrics of all
    allowed_hosts: list[str] = []  # names in Host that are answered; without keys also loopback
    allowed_origins: list[str] = []  # web pages on other origins that may use the API (CORS)
    num_cpus_per_score: int = Field(1, ge=1)

    @property
    def queue_share(self) -> int:
        """How many queued jobs one owner may have; without API keys all jobs have one owner."""
        if self.max_queued_jobs_per_owner is not None:
            return self.max_queued_jobs_per_owner
        if self.api_keys_file is None:
            return self.max_queued_jobs
        return max(1, self.max_queued_jobs * 3 // 4)
