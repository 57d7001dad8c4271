"""Metrics of all nodes as one Prometheus page: Ray exports them on a port of each node."""

import asyncio
import logging
import time

import httpx
import ray
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

logger = logging.getLogger("ray.serve")

_PREFIXES = ("ray_vidgen_", "ray_serve_", "ray_node_")
_TIMEOUT_S = 5.0
_MAX_AGE_S = 5.0


class MetricsPage:
    """The page of all nodes, gathered at most every few seconds however many ask for it."""

    def __init__(self, max_age_s: float = _MAX_AGE_S) -> None:
        self._max_age_s = max_age_s
        self._gathering: asyncio.Task[str] | None = None
        self._begun_at = 0.0

    async def page(self) -> str:
        """The page of now, or of up to `max_age_s` ago."""
        now = time.monotonic()
        failed = self._gathering and self._gathering.done() and self._gathering.exception()
        if self._gathering is None or failed or now - self._begun_at > self._max_age_s:
            self._begun_at = now
            self._gathering = asyncio.create_task(_gather())
        return await asyncio.shield(self._gathering)


async def _gather() -> str:
    """The families of interest; a node that does not answer is left out."""
    nodes = await asyncio.to_thread(ray.nodes)
    urls = [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in nodes
        if node["Alive"] and node.get("MetricsExportPort")
    ]
    async with httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False) as client:
        pages = await asyncio.gather(*(_page(client, url) for url in urls))
    return await asyncio.to_thread(_merge, pages)


async def _page(client: httpx.AsyncClient, url: str) -> str:
    try:
        answer = await client.get(url)
        return answer.text if answer.is_success else ""
    except httpx.HTTPError as error:
        logger.warning("no metrics from a node: %s", type(error).__name__)
        return ""


def _merge(pages: list[str]) -> str:
    """One family for each name: Prometheus refuses a page that repeats them."""
    families: dict[str, Metric] = {}
    for page in pages:
        for family in text_string_to_metric_families(page):
            if not family.name.startswith(_PREFIXES):
                continue
            known = families.setdefault(family.name, family)
            if known is not family:
                known.samples.extend(family.samples)
    registry = CollectorRegistry()
    registry.register(_Fixed(list(families.values())))
    return generate_latest(registry).decode()


class _Fixed:
    """A collector of families that are there already."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families
