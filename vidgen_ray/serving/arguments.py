"""The arguments of the application: what `args` in a Serve config file may say."""

from typing import Any

from pydantic import Field

from vidgen_ray.config import Section


class ServingArguments(Section):
    """`args` of the application. Paths are the head node's; every node must see `output`."""

    config: str = "cogvideox_5b_i2v"  # a shipped configuration, or a .yaml file
    settings: dict[str, Any] = {}  # section.key: value, over the configuration
    model_id: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,119}$")
    output: str = Field("outputs/serving", min_length=1)
    # Secrets stay out of what is logged of this object.
    database: str | None = Field(None, repr=False)  # or VIDGEN_DATABASE_URL; default: SQLite
    lora_folder: str | None = None
    api_keys_file: str | None = None  # or VIDGEN_API_KEYS_FILE
    allow_open_network: bool = False  # without API keys on more than loopback
    max_queued_jobs: int = Field(100, ge=1)
    max_dispatched_jobs: int = Field(16, ge=1)  # leased at once; what Serve scales by
    lease_s: float = Field(15, ge=1)
    max_tries: int = Field(3, ge=1, le=20)
    clip_timeout_s: float = Field(3600, gt=0)
    wait_timeout_s: float = Field(3600, gt=0)  # of POST /generate-video
    drain_s: float = Field(300, gt=0)  # below the deployments' graceful_shutdown_timeout_s
    retention_s: float | None = Field(7 * 86_400, gt=0)
    max_image_bytes: int = Field(20_000_000, ge=1)
    fetch_image_urls: bool = False
    webhook_url: str | None = Field(None, pattern=r"^https?://")
    webhook_hosts: list[str] = []  # hosts that a request's own webhook_url may name
    webhook_secret: str | None = Field(
        None, pattern=r"^whsec_", repr=False
    )  # or VIDGEN_WEBHOOK_SECRET
    num_cpus_per_score: int = Field(1, ge=1)
