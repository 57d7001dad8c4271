"""What is left to do of a jobs file, given what the output already holds."""

from collections.abc import Sequence
from datetime import UTC, datetime

from vidgen_ray.batch.job_validation import ValidJob
from vidgen_ray.errors import RequestError
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.generation.attempt import Attempt
from vidgen_ray.generation.jobs_file import RowProblem
from vidgen_ray.provenance import versions
from vidgen_ray.schema import ErrorRecord, GenerationRecord

_FINISHED = {"accepted", "needs_review"}


def plan_attempts(
    jobs: Sequence[ValidJob],
    records: dict[str, GenerationRecord],
    store: ArtifactStore,
    retry_failed: bool,
    suspects: Sequence[str],
    run_id: str,
) -> list[Attempt]:
    """The attempts to make, in the file's order; ids that may have killed a run come last."""
    begun = set(store.ids_with_attempts())
    todo = []
    for job in jobs:
        record = records.get(job.request.id)
        if record and (record.status in _FINISHED or not retry_failed):
            continue
        number = 1
        if job.request.id in begun:
            numbers = [
                earlier.attempt or 0
                for earlier in store.read_attempts(job.request.id)
                if earlier.content_hash == job.content_hash
            ]
            number = max(numbers, default=0) + 1
        todo.append(Attempt(job.request, number, run_id, job.content_hash))
    return sorted(todo, key=lambda attempt: attempt.id in suspects)


def refuse_changed(jobs: Sequence[ValidJob], records: dict[str, GenerationRecord]) -> None:
    """Raise RequestError where a finished id now stands for other content."""
    changed = [
        job
        for job in jobs
        if (record := records.get(job.request.id))
        and record.status in _FINISHED
        and record.content_hash != job.content_hash
    ]
    if changed:
        first = changed[0]
        more = f" and {len(changed) - 1} more ids" if len(changed) > 1 else ""
        raise RequestError(
            f"id: {first.request.id} (line {first.line}){more} is finished in the output with "
            f"other content ({_difference(first, records[first.request.id])}); give it a new id, "
            "or use another --output"
        )


def _difference(job: ValidJob, record: GenerationRecord) -> str:
    if record.request is None:
        return "it was not readable"
    before, now = record.request.model_dump(), job.request.model_dump()
    fields = sorted(name for name in now if name != "image" and before[name] != now[name])
    return ", ".join(fields) or "the image, the model, its options or the adapter changed"


def failed_rows(
    problems: Sequence[RowProblem],
    jobs: Sequence[ValidJob],
    records: dict[str, GenerationRecord],
    run_id: str,
) -> list[GenerationRecord]:
    """A failed record for each row that cannot be made, under its id where that is free."""
    taken = {job.request.id for job in jobs}
    by_line: dict[int, list[RowProblem]] = {}
    for problem in problems:
        by_line.setdefault(problem.line, []).append(problem)
    failed = []
    for line, of_row in by_line.items():
        clip_id = of_row[0].id
        if clip_id is None or clip_id in taken or _is_finished(records.get(clip_id)):
            clip_id = f"line-{line}"
        taken.add(clip_id)
        failed.append(
            GenerationRecord(
                id=clip_id,
                status="failed",
                content_hash="",
                request=None,
                error=ErrorRecord(
                    kind="RequestError", message="; ".join(map(str, of_row)), stage="check"
                ),
                versions=versions(),
                created_at=datetime.now(UTC),
                run_id=run_id,
            )
        )
    return failed


def _is_finished(record: GenerationRecord | None) -> bool:
    return record is not None and record.status in _FINISHED
