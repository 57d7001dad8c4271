"""What the Dispatcher sends to the Generator; attempts themselves travel on to the Scorer."""

from dataclasses import dataclass

from vidgen_ray.generation.attempt import FailedAttempt, GeneratedAttempt


@dataclass(frozen=True)
class ClipTask:
    """One attempt at a leased job. `request` is its GenerationRequest as JSON."""

    job_id: str
    lease_token: str
    attempt: int
    request: str
    http_request_id: str


@dataclass(frozen=True)
class GeneratorResult:
    """An attempt after the Generator. Pixels travel in Ray's shared memory."""

    attempt: GeneratedAttempt | FailedAttempt
    lease_token: str
    http_request_id: str
