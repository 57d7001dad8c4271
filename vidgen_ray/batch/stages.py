"""The stages of a batch on Ray Data: read, generate, score, save.

One row is one attempt at a clip. This module and what it imports is light: neither the driver nor
the workers of the stages without the model load torch or diffusers.

A row holds the record under construction as JSON, and pixels. A stage never loses a row: what is
wrong with a clip goes into its record, and the last stage commits that; what is wrong with the run
(no model, no store) goes into `fatal`, and stops the driver.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vidgen_ray.cluster.board import activity, begin
from vidgen_ray.config import Config
from vidgen_ray.errors import ArtifactError, ConfigError, RequestError, VidgenError
from vidgen_ray.generation import attempt as attempts
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.image_io import read_image
from vidgen_ray.schema import GenerationRecord, GenerationRequest, Video

logger = logging.getLogger(__name__)

_MAX_OTHER_NODES = 3

Row = dict[str, Any]
Work = Callable[[Row, GenerationRecord], tuple[Row, GenerationRecord]]


@dataclass(frozen=True)
class Run:
    """What every stage of a run needs to know. `board` is the handle of the run's board."""

    id: str
    config: Config
    output: str
    board: Any


def first_row(request: GenerationRequest, attempt: int, content_hash: str, run_id: str) -> Row:
    """The row of an attempt, counted from 1, before any stage."""
    record = attempts.begin(request, attempt, content_hash, run_id)
    return {
        "record": record.model_dump_json(),
        "image": None,
        "frames": None,
        "fatal": None,
        "again": False,
    }


def check_image(row: Row) -> Row:
    """Decode the image of a row with `image`, `height`, `width` and `image_fit`.

    Gives the row's `line`, the `sha256` of the image, and the `problem`, empty where there is none.
    """
    try:
        image = read_image(
            row["image"], height=row["height"], width=row["width"], fit=row["image_fit"]
        )
    except RequestError as error:
        return {"line": row["line"], "sha256": "", "problem": str(error)}
    return {"line": row["line"], "sha256": image.sha256, "problem": ""}


def read(row: Row, run: Run) -> Row:
    """Read the conditioning image: `image` becomes uint8 [height, width, 3]."""

    def work(row: Row, record: GenerationRecord) -> tuple[Row, GenerationRecord]:
        request = attempts.seeded_request(record)
        image = read_image(
            request.image, height=request.height, width=request.width, fit=request.image_fit
        )
        return {**row, "image": image.pixels}, attempts.with_image(record, image)

    return guard("read", work, row, run)


class Generate:
    """The stage that holds the model. Weights load with the first row."""

    def __init__(self, run: Run) -> None:
        from vidgen_ray.batch.worker import ClipWorker  # torch and diffusers

        self._run = run
        self._worker = ClipWorker(run)

    def __call__(self, row: Row) -> Row:
        """`frames` becomes uint8 [num_frames, height, width, 3]."""
        return guard("generate", self._worker.work, row, self._run)


def score(row: Row, run: Run) -> Row:
    """Score the clip and judge it."""

    def work(row: Row, record: GenerationRecord) -> tuple[Row, GenerationRecord]:
        num_threads = max(1, int(run.config.batch.num_cpus_per_score))
        video = _video(row, record)
        quality = run.config.quality
        return row, attempts.with_score(record, video, row["image"], quality, num_threads)

    return guard("score", work, row, run)


def save(row: Row, run: Run) -> Row:
    """Commit the clip and its record, or keep the attempt and ask for another (`again`)."""

    def work(row: Row, record: GenerationRecord) -> tuple[Row, GenerationRecord]:
        try:
            final = _settle(row, record, run)
        except ArtifactError as error:
            final = _settle_elsewhere(row, record, run, error)
        return {**row, "again": final is None}, final or record

    row = guard("save", work, row, run, even_failed=True)
    return {**row, "image": None, "frames": None}


def guard(name: str, work: Work, row: Row, run: Run, *, even_failed: bool = False) -> Row:
    """Do `work`, the stage `name`, on a row that is still good; what is raised ends in the row.

    A row that killed its process too often is not tried again: it is quarantined.
    """
    record = GenerationRecord.model_validate_json(row["record"])
    if row["fatal"] or (record.error and not even_failed):
        return row
    try:
        num_deaths = begin(run.board, activity(record.id, name))
        if num_deaths >= run.config.batch.max_worker_deaths:
            message = f"killed its worker {num_deaths} times in stage {name}"
            record = attempts.failed(record, "WorkerDied", message, name, "quarantined")
            row = {**row, "frames": None}
        if even_failed or not record.error:
            row, record = work(row, record)
    except (ArtifactError, ConfigError) as error:
        row = {**row, "fatal": f"{type(error).__name__}: {error}"}
    except VidgenError as error:
        record = attempts.failed(record, type(error).__name__, str(error), name)
    except Exception as error:
        logger.exception("%s: %s failed", record.id, name)
        message = f"{type(error).__name__}: {error}"
        record = attempts.failed(record, type(error).__name__, message, name)
    finally:
        run.board.end.remote(record.id, name)
    return {**row, "record": record.model_dump_json()}


def _settle(row: Row, record: GenerationRecord, run: Run) -> GenerationRecord | None:
    store = ArtifactStore(run.output)
    if row["image"] is not None:
        store.write_thumbnail(record.id, row["image"])
    video = None if row["frames"] is None else _video(row, record)
    return attempts.settle(store, record, video, run.config.quality.max_attempts)


def _settle_elsewhere(
    row: Row, record: GenerationRecord, run: Run, error: ArtifactError
) -> GenerationRecord | None:
    """One node that lost its storage must not end a run: others may still write.

    Raises `error` where no other of a few can.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != here and node["Resources"].get("CPU")
    ]
    for node_id in others[:_MAX_OTHER_NODES]:
        strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
        settle = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=strategy)(_settle)
        try:
            final: GenerationRecord | None = ray.get(settle.remote(row, record, run))
        except (ArtifactError, ray.exceptions.RayError):
            continue
        logger.error("%s: node %s cannot write, another did: %s", record.id, here[:6], error)
        return final
    raise ArtifactError(f"{error} (node {here[:6]}, and {len(others)} others)") from error


def _video(row: Row, record: GenerationRecord) -> Video:
    assert record.request is not None
    return Video(row["frames"], record.request.fps)
