"""The tables of the job store: one schema for SQLite and PostgreSQL."""

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

# Times are seconds since the epoch. `owner` is empty where no API keys are configured.
jobs = Table(
    "vidgen_jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", String(120), nullable=False),
    Column("status", String(16), nullable=False),
    Column("model", String(200), nullable=False),
    Column("lora", String(200)),  # the adapter's name; its path is in `request`
    Column("request", Text, nullable=False),  # the effective GenerationRequest
    Column("http_request_id", String(200), nullable=False),
    Column("idempotency_key", String(255)),
    Column("fingerprint", String(64), nullable=False),  # of what the client asked for
    Column("webhook_url", Text),
    Column("created_at", Float(53), nullable=False),
    Column("started_at", Float(53)),
    Column("ended_at", Float(53)),
    Column("expires_at", Float(53)),
    Column("step", Integer, nullable=False),
    Column("num_steps", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),  # of the quality gate, counted from 1
    Column("tries", Integer, nullable=False),  # leases that were not given back in good order
    Column("lease_token", String(64)),
    Column("lease_owner", String(64)),
    Column("lease_expires_at", Float(53)),  # without a token: not before
    Column("record", Text),  # the committed GenerationRecord
    Column("error_code", String(64)),
    Column("error_message", Text),
    UniqueConstraint("owner", "idempotency_key"),
    Index("vidgen_jobs_in_pages", "owner", "id"),
    Index("vidgen_jobs_by_status", "status", "created_at"),
    Index("vidgen_jobs_by_owner", "owner", "created_at"),
    Index("vidgen_jobs_by_end", "status", "ended_at"),
    Index("vidgen_jobs_by_expiry", "expires_at"),
    Index("vidgen_jobs_by_lease", "lease_owner"),
)

dispatchers = Table(
    "vidgen_dispatchers",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("seen_at", Float(53), nullable=False),
)

# Webhooks that are still to be delivered.
deliveries = Table(
    "vidgen_deliveries",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("job_id", String(64), nullable=False),
    Column("url", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("next_at", BigInteger, nullable=False),
    Index("vidgen_deliveries_by_time", "next_at"),
)

# Jobs that were deleted or cancelled, whose files have to go.
removals = Table(
    "vidgen_removals",
    metadata,
    Column("job_id", String(64), primary_key=True),
    Column("keep_upload", Integer, nullable=False),
    Column("looks", Integer, nullable=False),
    Column("next_at", Float(53), nullable=False),
    Index("vidgen_removals_by_time", "next_at"),
)

# What each process last said of its own health, as JSON.
reports = Table(
    "vidgen_reports",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("report", Text, nullable=False),
    Column("seen_at", Float(53), nullable=False),
)
