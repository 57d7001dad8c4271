"""From a create request to a stored job: all checks that need no GPU."""

import asyncio
import hashlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pydantic import ValidationError

from vidgen_ray.config import Config, LoRA
from vidgen_ray.errors import RequestError
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.model.lora_file import is_lora_folder
from vidgen_ray.request import ID_PATTERN, GenerationRequest, resolve_request
from vidgen_ray.serving.arguments import ServingArguments
from vidgen_ray.serving.http.clip_settings import ClipSettings
from vidgen_ray.serving.http.image_urls import fetch_image
from vidgen_ray.serving.http.problems import (
    ApiError,
    invalid,
    invalid_fields,
    not_found,
    request_id,
)
from vidgen_ray.serving.http.request_body import Body
from vidgen_ray.serving.http.request_fields import ApiFields
from vidgen_ray.serving.http.source_image import SOURCE_IMAGE, PictureFitter
from vidgen_ray.serving.queue.store import (
    IdempotencyConflict,
    Job,
    JobStore,
    NewJob,
    OwnerQueueFull,
    QueueFull,
)
from vidgen_ray.serving.queue.uploads import upload_name
from vidgen_ray.serving.webhook_url import check_webhook_url

if TYPE_CHECKING:  # imports torch, which takes seconds and is not needed to be alive
    from vidgen_ray.model.checkpoint import Checkpoint

REMIXED_FROM = "remixed_from_video_id"  # in the metadata of a request
_KEPT_METADATA = ("user", SOURCE_IMAGE)  # of the job that is remixed
_SHAPE = ("num_frames", "height", "width")


class JobCreator:
    """Checks requests against the served model, and stores those that pass as jobs."""

    def __init__(
        self, arguments: ServingArguments, config: Config, store: JobStore, artifacts: ArtifactStore
    ) -> None:
        self.model_id = arguments.model_id or Path(arguments.config).stem
        self._arguments = arguments
        self._config = config
        self._store = store
        self._artifacts = artifacts
        self._checking = threading.Lock()  # the tokenizer is for one thread at a time
        self._checking_lora = threading.Lock()
        # Pools of their own: whatever a check takes, jobs are read and written meanwhile.
        self._checks = ThreadPoolExecutor(2, thread_name_prefix="check")
        self._lora_checks = ThreadPoolExecutor(1, thread_name_prefix="check-lora")
        self._pictures = PictureFitter(arguments.max_decoded_image_bytes)

    @cached_property
    def checkpoint(self) -> "Checkpoint":
        """The facts of the served checkpoint, without its weights. Raises ConfigError."""
        from vidgen_ray.model.checkpoint import open_checkpoint

        return open_checkpoint(self._config.model, weights=False)

    def loras(self) -> dict[str, Path]:
        """The adapters of the configured folder by name: folders and .safetensors files."""
        if self._arguments.lora_folder is None:
            return {}
        found = {}
        for path in sorted(Path(self._arguments.lora_folder).iterdir()):
            name = path.stem if path.suffix == ".safetensors" else path.name
            if (is_lora_folder(path) or path.suffix == ".safetensors") and ID_PATTERN.fullmatch(
                name
            ):
                found[name] = path
        return found

    async def check_room(self, owner: str) -> None:
        """Refuse early, before a body is read, when the queue is full. Raises ApiError."""
        counts = await asyncio.to_thread(self._store.count)
        if counts.get("queued", 0) >= self._arguments.max_queued_jobs:
            raise await self._queue_full()
        counts = await asyncio.to_thread(self._store.count, owner)
        if counts.get("queued", 0) >= self._arguments.queue_share:
            raise await self._queue_full(owner)

    async def accept(
        self, body: Body, owner: str, idempotency_key: str | None, source: Job | None = None
    ) -> tuple[Job, bool]:
        """The job, and whether it is new. Raises ApiError, StoreError and ArtifactError.

        `source` is the job to remix: its image and its request, where the body does not differ.
        """
        job_id = _new_id()
        image = body.image
        if image is None and source is not None and body.image_url is None:
            image = await self._image_of(source)
        elif image is None:
            image = await self._fetch(body.image_url)
        webhook_url = self._webhook_url(body.fields.webhook_url)
        request, lora = await self._checked(job_id, body.fields, source)
        request, fitted = await self._fitted(request, image, lora)
        job = NewJob(
            id=job_id,
            owner=owner,
            model=self.model_id,
            lora=lora,
            request=request.model_dump_json(),
            http_request_id=request_id()[:200],
            fingerprint=_fingerprint(body.fields, image, source),
            num_steps=request.num_inference_steps,
            idempotency_key=idempotency_key,
            webhook_url=webhook_url,
        )
        try:
            return await asyncio.to_thread(self._keep, job, fitted)
        except OwnerQueueFull:
            raise await self._queue_full(owner) from None
        except QueueFull:
            raise await self._queue_full() from None
        except IdempotencyConflict:
            message = (
                "Idempotency-Key: was used for another request; use a new key for a new request"
            )
            raise ApiError(409, "idempotency_conflict", message) from None

    def _keep(self, job: NewJob, image: bytes) -> tuple[Job, bool]:
        """The image first, the row last: a job is kept when its row is there."""
        name = upload_name(job.id)
        self._artifacts.write(name, image)
        is_new = False
        try:
            kept, is_new = self._store.add(
                job, self._arguments.max_queued_jobs, self._arguments.queue_share
            )
        finally:
            if not is_new:
                self._artifacts.remove_file(name)
        return kept, is_new

    async def _fitted(
        self, request: GenerationRequest, image: bytes, lora: str | None
    ) -> tuple[GenerationRequest, bytes]:
        """The picture as the Generator reads it; the request says what the original was."""
        try:
            fitted = await self._pictures.fit(image, request, "input_reference")
        except RequestError as error:
            raise self._invalid(error, request, lora) from None
        # A remix has the stored picture, and says already what that was made of.
        metadata = {SOURCE_IMAGE: fitted.source, **request.metadata}
        return request.model_copy(update={"metadata": metadata}), fitted.png

    async def _checked(
        self, job_id: str, fields: ApiFields, source: Job | None
    ) -> tuple[GenerationRequest, str | None]:
        asks_for_lora = fields.lora is not None or fields.model not in {None, self.model_id}
        pool = self._lora_checks if asks_for_lora or (source and source.lora) else self._checks
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(pool, self._check, job_id, fields, source)

    def _check(
        self, job_id: str, fields: ApiFields, source: Job | None
    ) -> tuple[GenerationRequest, str | None]:
        settings = ClipSettings(
            self._config, self.model_id, self.loras(), self._arguments.model_aliases
        )
        chosen, lora = settings.read(fields)
        if source is not None:
            chosen, lora = _remixed(source, chosen, lora)
        address = self._artifacts.address_of(upload_name(job_id))
        try:
            request = resolve_request({"id": job_id, "image": address, **chosen}, self._config)
        except ValidationError as error:
            raise invalid_fields(error) from None
        checkpoint = self.checkpoint
        for name in _SHAPE:
            wanted, got = getattr(checkpoint, name), getattr(request, name)
            if got != wanted and not request.allow_untrained_shape:
                field = "size" if fields.size and name != "num_frames" else name
                raise invalid(f"{field}: {name} must be {wanted}, got {got}; leave {field} out")
        if request.mode == "optimized" and request.profile not in self._config.profiles:
            known = sorted(self._config.profiles)
            raise invalid(f"profile: must be one of {known}, got {request.profile!r}")
        try:
            with self._checking:
                checkpoint.check_request(request)
            if request.lora:
                with self._checking_lora:
                    self._check_lora(request.lora)
        except RequestError as error:
            raise self._invalid(error, request, lora) from None
        return request, lora

    def _invalid(
        self, error: RequestError, request: GenerationRequest, lora: str | None
    ) -> ApiError:
        """422, without paths of the server."""
        message = str(error).replace(self.checkpoint.source, self.model_id)
        if request.lora and lora:
            message = message.replace(request.lora.path, lora)
        return invalid(message)

    def _check_lora(self, lora: LoRA | None) -> None:
        if lora:
            from vidgen_ray.model.adapters import open_adapter

            open_adapter(lora, self.checkpoint)

    async def _image_of(self, job: Job) -> bytes:
        image = await asyncio.to_thread(self._artifacts.read, upload_name(job.id))
        if image is None:
            raise not_found(f"image of {job.id!r}; upload it again")
        return image

    async def _fetch(self, url: str | None) -> bytes:
        assert url is not None
        if not self._arguments.fetch_image_urls:
            raise invalid(
                "input_reference: this server fetches no URLs; upload the image, or give a "
                "base64 data URI (data:image/png;base64,...)"
            )
        try:
            return await fetch_image(url, max_bytes=self._arguments.max_image_bytes)
        except RequestError as error:
            raise invalid(str(error)) from None

    def _webhook_url(self, url: str | None) -> str | None:
        if url is None:
            return self._arguments.webhook_url
        try:
            host = check_webhook_url(url)
        except ValueError as error:
            raise invalid(f"webhook_url: {error}, got {url[:80]!r}") from None
        if host not in self._arguments.webhook_hosts:
            raise invalid(
                "webhook_url: must be on a host that the operator lists in webhook_hosts; "
                "leave it out, or ask the operator"
            )
        return url

    async def _queue_full(self, owner: str | None = None) -> ApiError:
        """429 for a full queue, or for an `owner` who has used their share of it."""
        limit = self._arguments.max_queued_jobs if owner is None else self._arguments.queue_share
        seconds_per_clip = await asyncio.to_thread(self._store.seconds_per_clip)
        # Until a tenth of the jobs that are ahead has been made: others wait for room as well.
        retry_after_s = max(1, min(300, round((seconds_per_clip or 5) * max(1, limit // 10))))
        jobs = "jobs" if owner is None else "jobs of yours"
        message = f"the queue holds {limit} {jobs}, as many as it may; try again in "
        headers = {"Retry-After": str(retry_after_s)}
        return ApiError(429, "queue_full", f"{message}{retry_after_s} s", headers=headers)


def _new_id() -> str:
    """An id that sorts by age, so that a page can follow the id of a deleted job."""
    return f"video_{time.time_ns() // 1000:015x}{uuid4().hex[:17]}"


def _remixed(
    source: Job, chosen: dict[str, Any], lora: str | None
) -> tuple[dict[str, Any], str | None]:
    """The request of `source` with the fields `chosen` in the place of its own."""
    before = GenerationRequest.model_validate_json(source.request)
    kept = before.model_dump(exclude={"id", "image", "prompt", "metadata"})
    if chosen.get("mode") == "baseline":
        kept["profile"] = None
    metadata = {
        **{name: before.metadata[name] for name in _KEPT_METADATA if name in before.metadata},
        **chosen.get("metadata", {}),
        REMIXED_FROM: source.id,
    }
    return {**kept, **chosen, "metadata": metadata}, lora or (source.lora if kept["lora"] else None)


def _fingerprint(fields: ApiFields, image: bytes, source: Job | None) -> str:
    asked = fields.model_dump(mode="json", exclude_none=True)
    if source is not None:
        asked[REMIXED_FROM] = source.id
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    digest.update(hashlib.sha256(image).digest())
    return digest.hexdigest()
