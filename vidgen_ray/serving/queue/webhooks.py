"""Webhooks: signed as the Standard Webhooks specification says, retried with back-off.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import logging
import time

import httpx

from vidgen_ray.errors import ConfigError, StoreError
from vidgen_ray.serving.queue.deliveries import Deliveries, Delivery

logger = logging.getLogger("ray.serve")

BACKOFF_S = (5, 30, 120, 600, 3600, 4 * 3600, 12 * 3600)
_POLL_S = 2.0
_TIMEOUT_S = 10.0
_AT_ONCE = 32


def check_secret(secret: str) -> bytes:
    """The key that `whsec_...` holds in base64. Raises ConfigError."""
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        key = b""
    if not 24 <= len(key) <= 64:
        raise ConfigError(
            "webhook_secret: must be whsec_ and 24 to 64 random bytes in base64, for example "
            "whsec_$(openssl rand -base64 32)"
        )
    return key


def sign(key: bytes, event_id: str, timestamp: int, body: str) -> str:
    """The value of the `webhook-signature` header."""
    content = f"{event_id}.{timestamp}.{body}".encode()
    return "v1," + base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()


class WebhookSender:
    """Delivers what is due, each delivery by itself. An answer of 2xx ends a delivery."""

    def __init__(self, deliveries: Deliveries, secret: str | None) -> None:
        self._deliveries = deliveries
        self._key = check_secret(secret) if secret else None
        self._awake = asyncio.Event()
        self._sending: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """Look for deliveries now."""
        self._awake.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        if self._key is None:
            await asyncio.Event().wait()  # nothing can be signed, so nothing is ever due
        async with httpx.AsyncClient(timeout=_TIMEOUT_S, follow_redirects=False) as client:
            try:
                while True:
                    await self._send_due(client)
                    self._awake.clear()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._awake.wait(), _POLL_S)
            finally:
                for task in self._sending:
                    task.cancel()

    async def _send_due(self, client: httpx.AsyncClient) -> None:
        """Start as many deliveries as there is room for; a slow receiver delays no other."""
        room = _AT_ONCE - len(self._sending)
        try:
            due = await asyncio.to_thread(self._deliveries.due, room, 3 * _TIMEOUT_S)
        except StoreError as error:
            logger.error("%s", error)
            return
        for delivery in due:
            task = asyncio.create_task(self._deliver(client, delivery))
            self._sending.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: "asyncio.Task[None]") -> None:
        self._sending.discard(task)
        self._awake.set()  # there may be more than there was room for
        if not task.cancelled() and task.exception() is not None:
            logger.error("webhook: unexpected error", exc_info=task.exception())

    async def _deliver(self, client: httpx.AsyncClient, delivery: Delivery) -> None:
        problem = await self._post(client, delivery)
        extra = {"video_id": delivery.job_id, "try": delivery.tries}
        try:
            if problem is None or delivery.tries > len(BACKOFF_S):
                await asyncio.to_thread(self._deliveries.end, delivery.id)
                logger.info("webhook %s", problem or "delivered", extra=extra)
            else:
                delay_s = BACKOFF_S[delivery.tries - 1]
                await asyncio.to_thread(self._deliveries.retry, delivery.id, delay_s)
                logger.warning("webhook failed, will be retried: %s", problem, extra=extra)
        except StoreError as error:  # it is due again by itself
            logger.error("%s", error, extra=extra)

    async def _post(self, client: httpx.AsyncClient, delivery: Delivery) -> str | None:
        """Send it once: None when it was accepted, otherwise what went wrong."""
        assert self._key is not None
        timestamp = int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": "vidgen-ray",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(self._key, delivery.id, timestamp, delivery.body),
        }
        try:
            # Of all of it: a receiver that answers byte by byte keeps within any other timeout.
            async with (
                asyncio.timeout(2 * _TIMEOUT_S),
                client.stream(
                    "POST", delivery.url, content=delivery.body, headers=headers
                ) as answer,
            ):  # the body may be endless, and nobody reads it
                return None if answer.is_success else f"status {answer.status_code}"
        except Exception as error:  # httpx raises more than HTTPError for what a URL may hold
            return f"{type(error).__name__}: {error}"
