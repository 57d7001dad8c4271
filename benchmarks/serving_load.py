"""What a server bears and what it costs: python benchmarks/serving_load.py URL IMAGE [...]

Three parts, each a table in Markdown:
  cost    clips one after the other on an idle server: what the platform adds to a clip
  load    clients that post, poll, follow, cancel and delete at random
  crowd   many clients that poll once a second or follow, while clips are made
"""

import argparse
import asyncio
import random
import statistics
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import aiohttp

STAGES = ("load", "text", "image_encode", "denoise", "decode", "score", "save")
ENDS = {"completed", "failed", "cancelled"}

Session = aiohttp.ClientSession


class Measured:
    """Seconds by kind of request, and how many answered with which status."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.problems: list[str] = []

    async def ask(self, session: Session, kind: str, method: str, path: str, **more: Any) -> Any:
        """The JSON of an answer, None for an error that was counted."""
        start = time.perf_counter()
        async with session.request(method, path, **more) as answer:
            body = await answer.json()
        self.seconds[kind].append(time.perf_counter() - start)
        self.statuses[kind, answer.status] += 1
        if answer.status == 429:
            await asyncio.sleep(min(2.0, float(answer.headers["retry-after"])))
        elif answer.status >= 400:
            self.problems.append(f"{kind}: {answer.status}: {body}")
        return body if answer.status < 400 else None

    def table(self) -> str:
        """Count, median, p95, p99 and worst of each kind, in milliseconds."""
        lines = ["| request | answers | median | p95 | p99 | worst |", "|---|---|---|---|---|---|"]
        for kind, seconds in sorted(self.seconds.items()):
            codes = ", ".join(
                f"{count} x {status}"
                for (name, status), count in sorted(self.statuses.items())
                if name == kind
            )
            cuts = [percentile(seconds, share) for share in (50, 95, 99, 100)]
            figures = " | ".join(f"{1000 * cut:.0f} ms" for cut in cuts)
            lines.append(f"| {kind} | {codes or len(seconds)} | {figures} |")
        return "\n".join(lines)


def percentile(values: list[float], share: int) -> float:
    """The value below which `share` percent of `values` lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * share // 100)]


def form(image: bytes, steps: int) -> aiohttp.FormData:
    """A create request."""
    data = aiohttp.FormData({"prompt": "slow push in", "num_inference_steps": str(steps)})
    data.add_field("input_reference", image, filename="image.jpg", content_type="image/jpeg")
    return data


async def until_end(session: Session, video_id: str) -> dict[str, Any]:
    """The job when it has ended."""
    while True:
        async with session.get(f"/v1/videos/{video_id}") as answer:
            job: dict[str, Any] = await answer.json()
        if job["status"] in ENDS:
            return job
        await asyncio.sleep(0.2)


async def cost(session: Session, image: bytes, number: int) -> None:
    """Clips on an idle server, one after the other."""
    parts = defaultdict(list)
    for _ in range(number):
        start = time.perf_counter()
        async with session.post("/v1/videos", data=form(image, 4)) as answer:
            video_id = (await answer.json())["id"]
        posted = time.perf_counter() - start
        times = (await until_end(session, video_id))["stage_durations"]
        made = sum(times.get(stage, 0.0) for stage in STAGES)
        parts["clip: generation, score and save"].append(made)
        parts["POST: checks, image kept, job kept"].append(posted)
        parts["queued: accepted until the generator starts"].append(times["queued"])
        parts["between stages: frames handed on, records, end"].append(
            times["total"] - times["queued"] - made
        )
        parts["platform: POST + queued + between stages"].append(posted + times["total"] - made)
    print(f"\n{number} clips, one after the other\n\n| | median | p90 |\n|---|---|---|")
    for name, seconds in parts.items():
        middle, high = statistics.median(seconds), percentile(seconds, 90)
        print(f"| {name} | {1000 * middle:.0f} ms | {1000 * high:.0f} ms |")


async def load(session: Session, image: bytes, clients: int, seconds: float) -> None:
    """Clients that do what desks do, and some things besides."""
    measured, ends, accepted = Measured(), Counter[str](), []
    stop = time.monotonic() + seconds

    async def client(seed: int) -> None:
        chance = random.Random(seed)
        while time.monotonic() < stop:
            data = form(image, chance.randint(1, 8))
            job = await measured.ask(session, "post", "POST", "/v1/videos", data=data)
            if job is None:
                continue
            accepted.append(job["id"])
            path = f"/v1/videos/{job['id']}"
            cancels = chance.random() < 0.2
            patience = chance.uniform(0, 3)
            began = time.monotonic()
            while job and job["status"] not in ENDS:
                await asyncio.sleep(0.5)
                if cancels and time.monotonic() - began > patience:
                    job = await measured.ask(session, "cancel", "POST", f"{path}/cancel")
                    break
                job = await measured.ask(session, "poll", "GET", path)
            if job and job["status"] == "completed":
                start = time.perf_counter()
                async with session.get(f"{path}/content") as answer:
                    whole = len(await answer.read()) == int(answer.headers["content-length"])
                measured.seconds["download"].append(time.perf_counter() - start)
                measured.statuses["download", answer.status if whole else 0] += 1
            await measured.ask(session, "list", "GET", "/v1/videos?limit=5")
            await measured.ask(session, "health", "GET", "/health")

    start = time.monotonic()
    await asyncio.gather(*(client(seed) for seed in range(clients)))
    for video_id in accepted:
        ends[(await until_end(session, video_id))["status"]] += 1
    made = ends["completed"] / (time.monotonic() - start) * 3600
    print(f"\n{clients} clients for {seconds:.0f} s\n\n{measured.table()}")
    print(f"\n{len(accepted)} jobs accepted, all ended: {dict(ends)}; {made:.0f} clips an hour.")
    print(f"Errors: {len(measured.problems)} {measured.problems[:3]}")


async def crowd(session: Session, image: bytes, clients: int, seconds: float) -> None:
    """Half poll once a second, half follow, while one clip after the other is made."""
    measured, events, problems = Measured(), Counter[str](), []
    stop = time.monotonic() + seconds
    current = ""

    async def make() -> None:
        nonlocal current
        while time.monotonic() < stop:
            async with session.post("/v1/videos", data=form(image, 1000)) as answer:
                current = (await answer.json())["id"]
            await until_end(session, current)

    async def poll() -> None:
        # Each in its own second: after a stall they would all come at once, for ever.
        phase = time.perf_counter()
        while time.monotonic() < stop:
            await measured.ask(session, "poll", "GET", f"/v1/videos/{current}")
            await asyncio.sleep(1 - (time.perf_counter() - phase) % 1)

    async def follow() -> None:
        while time.monotonic() < stop:
            async with session.get(f"/v1/videos/{current}/events") as answer:
                async for line in answer.content:
                    if line.startswith(b"event:"):
                        events[line.decode().split()[1]] += 1
            await asyncio.sleep(random.uniform(0, 3))  # as browsers do

    async def guarded(index: int) -> None:
        await asyncio.sleep(3 * index / clients)
        try:
            await (poll() if index % 2 else follow())
        except Exception as error:
            problems.append(f"{type(error).__name__}: {error}")

    making = asyncio.create_task(make())
    while not current:
        await asyncio.sleep(0.05)
    await asyncio.gather(*(guarded(index) for index in range(clients)), making)
    rate = len(measured.seconds["poll"]) / seconds
    print(f"\n{clients} clients for {seconds:.0f} s, half of them following\n\n{measured.table()}")
    print(f"\n{rate:.0f} polls/s, {sum(events.values()) / seconds:.0f} events/s {dict(events)}.")
    print(f"Errors: {len(problems) + len(measured.problems)} {(problems + measured.problems)[:3]}")


async def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("image", type=Path)
    parser.add_argument("--clips", type=int, default=20, help="of the cost part")
    parser.add_argument("--clients", type=int, default=20, help="of the load part")
    parser.add_argument("--crowd", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    image = arguments.image.read_bytes()
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=600)
    async with Session(arguments.url, connector=connector, timeout=timeout) as session:
        if arguments.clips:
            await cost(session, image, arguments.clips)
        if arguments.clients:
            await load(session, image, arguments.clients, arguments.seconds)
        if arguments.crowd:
            await crowd(session, image, arguments.crowd, arguments.seconds)


asyncio.run(main())
