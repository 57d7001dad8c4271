"""Heartbeats of Generators, and the end of those that have stopped sending them."""

import logging
import math
import threading

import ray

from vidgen_ray.errors import StoreError
from vidgen_ray.serving.queue.reports import Reports

logger = logging.getLogger("ray.serve")

_PREFIX = "generator-"
_EVERY_S = 5.0
_SILENT_S = 30.0  # nothing that a Generator does holds Python's interpreter lock as long


class Heartbeat:
    """Writes to the store every few seconds from a thread, which a long step does not stop."""

    def __init__(self, reports: Reports) -> None:
        """Starts at once in a Ray actor that has a name, as replicas have; otherwise never."""
        self._reports = reports
        self._ends = threading.Event()
        context = ray.get_runtime_context()
        self._name = _PREFIX + context.get_worker_id()[:40]
        self._actor = {"actor": context.get_actor_name() or "", "namespace": context.namespace}
        if self._actor["actor"]:
            threading.Thread(target=self._run, daemon=True, name="heartbeat").start()

    def stop(self) -> None:
        """End in good order: nobody waits for the next heartbeat. Raises StoreError."""
        self._ends.set()
        self._reports.remove(self._name)

    def _run(self) -> None:
        while True:
            try:
                self._reports.write(self._name, self._actor)
            except StoreError as error:
                logger.warning("%s", error)
            if self._ends.wait(_EVERY_S):
                return


class HeartbeatMonitor:
    """Kills Generators that are silent while this process itself can write to the store.

    Serve takes minutes to give up a process that is stopped (SIGSTOP) or holds the interpreter
    lock for ever; until then its GPU and its job would wait.
    """

    def __init__(self, reports: Reports, check_every_s: float) -> None:
        """`check` will be called every `check_every_s`."""
        self._reports = reports
        # Checks are counted, not seconds: after a pause of the whole machine all are late alike.
        self._limit = max(2, math.ceil(_SILENT_S / check_every_s))
        self._silent_checks: dict[str, tuple[float | None, int]] = {}

    def reset(self) -> None:
        """The store could not be written: heartbeats may be missing for the same reason."""
        self._silent_checks.clear()

    def check(self) -> None:
        """Kill the replicas whose heartbeat has not changed for `_SILENT_S`. Raises StoreError."""
        beats = self._reports.read_all(_PREFIX)
        before, self._silent_checks = self._silent_checks, {}
        for name, (report, seen_at) in beats.items():
            last, checks = before.get(name, (None, 0))
            checks = checks + 1 if last == seen_at else 0
            self._silent_checks[name] = (seen_at, checks)
            if checks == self._limit and _kill(report):
                self._reports.remove(name)


def _kill(report: dict[str, str]) -> bool:
    """Kill the actor; whoever waits for it gets RayActorError. False: it is none of this Ray's."""
    try:
        actor = ray.get_actor(report["actor"], namespace=report["namespace"])
    except ValueError:
        return False  # it has ended, or belongs to another cluster with the same store
    logger.error("generator killed: it sent no heartbeat for %g s", _SILENT_S, extra=report)
    ray.kill(actor)
    return True
