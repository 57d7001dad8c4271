"""The Scorer writes nothing for a job that nobody wants any more."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from serving_process import picture
from test_jobs import lease, new

from vidgen_ray.config import load_config
from vidgen_ray.errors import RequestError, StoreError
from vidgen_ray.generation.attempt import Attempt, fail
from vidgen_ray.image_io import decode_image
from vidgen_ray.request import resolve_request
from vidgen_ray.serving.arguments import ServingArguments
from vidgen_ray.serving.deployments.scorer import Scorer
from vidgen_ray.serving.deployments.tasks import GeneratorResult
from vidgen_ray.serving.queue.store import JobStore

pytestmark = pytest.mark.usefixtures("ray_cluster")  # for the metrics


class Bench:
    """A Scorer, and an attempt at a leased job for it."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "out"
        url = f"sqlite:///{folder}/jobs.db"
        args = {"config": "nano", "output": str(self.output), "database": url}
        config = load_config("nano")
        self.store = JobStore(url)
        self.scorer = Scorer(ServingArguments.model_validate(args), config.quality)
        request = resolve_request({"id": "a", "image": "photo.png", "prompt": "push in"}, config)
        self.store.add(new("a", request=request.model_dump_json()), max_queued=9)
        (job,) = lease(self.store, lease_s=60)
        image = decode_image(picture(), height=64, width=96)
        failed = fail(Attempt(request, 1, run_id="a"), RequestError("x: y"), "generate", image)
        self.made = GeneratorResult(failed, job.lease_token or "", "r1")

    def files(self) -> set[str]:
        """What was written for the job, thumbnail and record alike."""
        return {path.name for path in self.output.rglob("a*") if path.is_file()}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def release(store: JobStore) -> None:
    job = store.get("a")
    assert job is not None
    store.release("a", job.lease_token or "", blame=True)


@pytest.mark.parametrize(
    "end", [lambda store: store.remove("a"), lambda store: store.cancel("a"), release]
)
def test_an_attempt_whose_lease_was_lost_leaves_nothing(
    bench: Bench, end: Callable[[JobStore], None]
) -> None:
    end(bench.store)
    assert asyncio.run(bench.scorer.commit_or_retry(bench.made)) is None
    assert bench.files() == set()


def test_one_that_is_wanted_is_committed_also_while_the_store_is_away(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asyncio.run(bench.scorer.commit_or_retry(bench.made)) is not None
    assert "a.json" in bench.files()
    (bench.output / "a.json").unlink()

    def away(*_: object) -> bool:
        raise StoreError("database: away")

    monkeypatch.setattr(bench.scorer._store, "holds_lease", away)
    assert asyncio.run(bench.scorer.commit_or_retry(bench.made)) is not None
    assert "a.json" in bench.files()
