"""From what a client asked for to a job that is kept: all checks that need no GPU, and the row."""

import asyncio
import hashlib
import json
import threading
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

from pydantic import ValidationError

from vidgen_ray.config import Config, LoRA
from vidgen_ray.errors import RequestError
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.generation.templates import expand
from vidgen_ray.image_io import decode_image
from vidgen_ray.model.lora_file import is_lora_folder
from vidgen_ray.schema import ID_PATTERN, GenerationRequest, resolve_request
from vidgen_ray.serving.arguments import ServingArguments
from vidgen_ray.serving.http.image_urls import fetch_image
from vidgen_ray.serving.http.problems import ApiError, invalid, invalid_fields, request_id
from vidgen_ray.serving.http.request_fields import Body, VideoFields
from vidgen_ray.serving.queue.store import (
    IdempotencyConflict,
    Job,
    JobStore,
    NewJob,
    QueueFull,
)
from vidgen_ray.serving.queue.uploads import upload_name

if TYPE_CHECKING:  # imports torch, which takes seconds and is not needed to be alive
    from vidgen_ray.model.checkpoint import Checkpoint

_SHAPE = ("num_frames", "height", "width")


class Intake:
    """Checks requests against the served model, and keeps those that pass."""

    def __init__(
        self, arguments: ServingArguments, config: Config, store: JobStore, artifacts: ArtifactStore
    ) -> None:
        self.model_id = arguments.model_id or Path(arguments.config).stem
        self._arguments = arguments
        self._config = config
        self._store = store
        self._artifacts = artifacts
        self._checking = threading.Lock()  # the tokenizer is for one thread at a time
        self._decoding = asyncio.Semaphore(2)  # a picture takes up to half a GB while it is decoded

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

    async def check_room(self) -> None:
        """Refuse early, before a body is read, when the queue is full. Raises ApiError."""
        counts = await asyncio.to_thread(self._store.count)
        if counts.get("queued", 0) >= self._arguments.max_queued_jobs:
            raise await self._queue_full()

    async def accept(self, body: Body, owner: str, idempotency_key: str | None) -> tuple[Job, bool]:
        """The job, and whether it is new. Raises ApiError, StoreError and ArtifactError."""
        job_id = f"video_{uuid4().hex}"
        image = body.image if body.image is not None else await self._fetch(body.image_url)
        webhook_url = self._webhook_url(body.fields.webhook_url)
        async with self._decoding:
            request, lora = await asyncio.to_thread(self._check, job_id, body.fields, image)
        job = NewJob(
            id=job_id,
            owner=owner,
            model=self.model_id,
            lora=lora,
            request=request.model_dump_json(),
            http_request_id=request_id()[:200],
            fingerprint=_fingerprint(body.fields, image),
            num_steps=request.num_inference_steps,
            idempotency_key=idempotency_key,
            webhook_url=webhook_url,
        )
        try:
            return await asyncio.to_thread(self._keep, job, image)
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
            kept, is_new = self._store.add(job, self._arguments.max_queued_jobs)
        finally:
            if not is_new:
                self._artifacts.remove_file(name)
        return kept, is_new

    def _check(
        self, job_id: str, fields: VideoFields, image: bytes
    ) -> tuple[GenerationRequest, str | None]:
        chosen, lora = self._chosen(fields)
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
                self._check_lora(request.lora)
            decode_image(
                image,
                height=request.height,
                width=request.width,
                fit=request.image_fit,
                field="input_reference",
            )
        except RequestError as error:
            message = str(error).replace(checkpoint.source, self.model_id)
            if request.lora and lora:
                message = message.replace(request.lora.path, lora)
            raise invalid(message) from None
        return request, lora

    def _check_lora(self, lora: LoRA | None) -> None:
        if lora:
            from vidgen_ray.model.adapters import open_adapter

            open_adapter(lora, self.checkpoint)

    def _chosen(self, fields: VideoFields) -> tuple[dict[str, Any], str | None]:
        """The fields of a GenerationRequest that the client set, and the adapter's name."""
        given = {name: value for name, value in fields if value is not None}
        try:
            given = expand(given, self._config.prompt_templates)
        except RequestError as error:
            raise invalid(str(error)) from None
        chosen = {name: given[name] for name in given if name in GenerationRequest.model_fields}
        lora = chosen.pop("lora", None)
        name, scale = (lora.name, lora.scale) if lora else (None, 1.0)
        if fields.model not in {None, self.model_id}:
            if name not in {None, fields.model}:
                raise invalid("model: names another adapter than lora; leave one of them out")
            name = fields.model
        if name is not None:
            loras = self.loras()
            if name not in loras:
                if lora and not loras:
                    raise invalid(f"lora: this server has none, got {name[:120]!r}; leave it out")
                field = "lora" if lora else "model"
                names = sorted(loras) if lora else [self.model_id, *sorted(loras)]
                raise invalid(f"{field}: must be one of {names}, got {name[:120]!r}")
            chosen["lora"] = {"path": str(loras[name]), "scale": scale}
        if fields.size is not None:
            if "width" in given or "height" in given:
                raise invalid("size: must not be given beside width or height; use one of them")
            width, height = fields.size.split("x")
            chosen |= {"width": int(width), "height": int(height)}
        if fields.seconds is not None:
            chosen["fps"] = self._fps(fields)
        return chosen, name

    def _fps(self, fields: VideoFields) -> int:
        if fields.fps is not None:
            raise invalid("seconds: must not be given beside fps; use one of them")
        try:
            seconds = int(str(fields.seconds), 10)
        except ValueError:
            seconds = 0
        num_frames = fields.num_frames or self._config.generation.num_frames
        fps = round(num_frames / seconds) if 0 < seconds <= num_frames else 0
        if not 1 <= fps <= 60:
            raise invalid(
                f"seconds: must be a whole number that {num_frames} frames can last, from 1 to "
                f"{num_frames}, got {str(fields.seconds)[:80]!r}"
            )
        return fps

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
            parts = urlsplit(url)
            allowed = parts.scheme == "https" and parts.hostname in self._arguments.webhook_hosts
        except ValueError:
            allowed = False
        if not allowed:
            raise invalid(
                "webhook_url: must be https and on a host that the operator lists in "
                "webhook_hosts; leave it out, or ask the operator"
            )
        return url

    async def _queue_full(self) -> ApiError:
        mean_s = await asyncio.to_thread(self._store.mean_clip_s)
        retry_after_s = max(1, min(300, round(mean_s or 5)))
        message = (
            f"the queue holds {self._arguments.max_queued_jobs} jobs, as many as it may; "
            f"try again in {retry_after_s} s"
        )
        headers = {"Retry-After": str(retry_after_s)}
        return ApiError(429, "queue_full", message, headers=headers)


def _fingerprint(fields: VideoFields, image: bytes) -> str:
    asked = fields.model_dump(mode="json", exclude_none=True)
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    digest.update(hashlib.sha256(image).digest())
    return digest.hexdigest()
