"""Removal of files that no job needs: of deleted, cancelled and expired jobs, and orphans."""

import asyncio
import logging
import re
import time
from collections.abc import Iterable

from vidgen_ray.errors import ArtifactError, VidgenError
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.serving.queue.store import JobStore
from vidgen_ray.serving.queue.uploads import UPLOADS, remove_files, upload_name

logger = logging.getLogger("ray.serve")

_REMOVALS_EVERY_S = 1.0
_EXPIRY_EVERY_S = 30.0
_ORPHANS_EVERY_S = 600.0
_PAUSE_S = 0.05  # between small steps of retention, so that others get at the store
_ID = re.compile(r"video_[0-9a-f]{32}")
_IDS_PER_QUERY = 200


class Sweeper:
    """Removes files in the background; whatever fails is done again at the next sweep."""

    def __init__(
        self, store: JobStore, artifacts: ArtifactStore, retention_s: float | None
    ) -> None:
        """`retention_s` is how old an orphan becomes before it is removed; None: it stays."""
        self._store = store
        self._artifacts = artifacts
        self._retention_s = retention_s
        self._stray_uploads: set[str] = set()

    async def run(self) -> None:
        """Sweep until cancelled."""
        next_expiry = next_orphans = time.monotonic()
        while True:
            await asyncio.sleep(_REMOVALS_EVERY_S)
            try:
                await asyncio.to_thread(self.remove_scheduled)
                if time.monotonic() >= next_expiry:
                    while await asyncio.to_thread(self.remove_expired):
                        await asyncio.sleep(_PAUSE_S)
                    await asyncio.to_thread(self.remove_stray_uploads)
                    next_expiry = time.monotonic() + _EXPIRY_EVERY_S
                if time.monotonic() >= next_orphans:
                    await asyncio.to_thread(self.remove_orphans)
                    next_orphans = time.monotonic() + _ORPHANS_EVERY_S
            except VidgenError as error:
                logger.error("%s", error)

    def remove_scheduled(self) -> None:
        """Remove what deleted and cancelled jobs have left, also what was written since."""
        for removal in self._store.removals.due():
            try:
                keep_upload = bool(removal.keep_upload)
                remove_files(self._artifacts, removal.job_id, keep_upload=keep_upload)
            except ArtifactError as error:
                logger.error("%s", error, extra={"video_id": removal.job_id})
                self._store.removals.postpone(removal, _EXPIRY_EVERY_S)
            else:
                self._store.removals.looked(removal)

    def remove_expired(self) -> bool:
        """Remove a few jobs whose time is over, files first. False: none was removed."""
        num_removed = 0
        for job_id in self._store.expired():
            try:
                remove_files(self._artifacts, job_id)
            except ArtifactError as error:
                logger.error("%s", error, extra={"video_id": job_id})
            else:
                num_removed += self._store.remove(job_id)
        return num_removed > 0

    def remove_stray_uploads(self) -> None:
        """Remove images that had no job in the last sweep either: a younger one may get it yet."""
        strays = self._without_job(self._artifacts.names(UPLOADS))
        for name in strays & self._stray_uploads:
            self._artifacts.remove_file(upload_name(name))
        self._stray_uploads = strays

    def remove_orphans(self) -> None:
        """Remove clips and records without a job once they are older than any job would be.

        Not at once: after the store was restored from a backup, clips made since have no job.
        """
        if self._retention_s is None:
            return
        before = time.time() - self._retention_s
        old = [
            name
            for folder in ("", "thumbnails")
            for name, written_at in self._artifacts.times(folder).items()
            if written_at < before
        ]
        ids = {match[0] for name in old if (match := _ID.match(name))}
        for job_id in self._without_job(ids):
            remove_files(self._artifacts, job_id)

    def _without_job(self, job_ids: Iterable[str]) -> set[str]:
        ids = list(job_ids)
        known: set[str] = set()
        for start in range(0, len(ids), _IDS_PER_QUERY):
            known |= self._store.existing(ids[start : start + _IDS_PER_QUERY])
        return set(ids) - known
