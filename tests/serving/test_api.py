"""The HTTP contract, against a real server with the tiny model."""

import base64
import io
import json
import os
import select
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from serving_process import Server, picture, until

from vidgen_ray.config import has_nvidia_gpu
from vidgen_ray.schema import GenerationRecord
from vidgen_ray.video_io import read_video

pytestmark = pytest.mark.timeout(300)

PHOTO = picture()
SLOW = 1000  # steps: several seconds


def post(client: httpx.Client, path: str = "/v1/videos", **fields: Any) -> httpx.Response:
    headers = fields.pop("headers", {})
    image = fields.pop("image", PHOTO)
    name = "image" if path == "/generate-video" else "input_reference"
    data = {"prompt": "push in", **{key: str(value) for key, value in fields.items()}}
    return client.post(path, data=data, files={name: ("a.png", image)}, headers=headers)


def ended(client: httpx.Client, video_id: str, timeout_s: float = 60) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        job: dict[str, Any] = client.get(f"/v1/videos/{video_id}").raise_for_status().json()
        return job if job["status"] not in {"queued", "in_progress"} else None

    return until(look, timeout_s)  # type: ignore[return-value]


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == code
    assert error["request_id"] == answer.headers["x-request-id"]
    for secret in ("/tmp", str(Path.cwd()), ".py", "Traceback"):
        assert secret not in answer.text
    return error


@pytest.fixture(scope="module")
def done(server: Server) -> Iterator[dict[str, Any]]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield ended(client, post(client, seed=7).raise_for_status().json()["id"])


class TestGenerateVideo:
    def test_waits_and_answers_with_the_clip(self, client: httpx.Client, tmp_path: Path) -> None:
        answer = post(client, "/generate-video", seed=7, num_inference_steps=2, fps=4)
        assert answer.status_code == 200, answer.text
        clip = answer.json()
        assert clip["status"] == "completed"
        assert clip["verdict"] == "accepted"
        assert 0 <= clip["temporal_score"] <= 1
        assert (clip["seed"], clip["num_inference_steps"], clip["fps"]) == (7, 2, 4)
        file = client.get(clip["url"])
        assert file.headers["content-type"] == "video/mp4"
        (tmp_path / "clip.mp4").write_bytes(file.content)
        video = read_video(str(tmp_path / "clip.mp4"))
        assert video.frames.shape == (9, 64, 96, 3)
        assert video.fps == 4

    def test_sync_answers_with_the_clip_itself(self, client: httpx.Client) -> None:
        answer = post(client, "/v1/videos/sync", seed=7)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "video/mp4"
        assert answer.headers["x-verdict"] == "accepted"
        job = client.get(f"/v1/videos/{answer.headers['x-video-id']}").json()
        assert client.get(job["url"]).content == answer.content

    def test_a_client_that_leaves_cancels_its_clip(self, client: httpx.Client) -> None:
        with pytest.raises(httpx.ReadTimeout):
            client.post(
                "/generate-video",
                data={"prompt": "left alone", "num_inference_steps": str(SLOW)},
                files={"image": PHOTO},
                timeout=1.0,
            )
        jobs = client.get("/v1/videos", params={"limit": 1}).json()["data"]
        assert jobs[0]["prompt"] == "left alone"
        assert ended(client, jobs[0]["id"], 10)["status"] == "cancelled"


class TestVideos:
    def test_the_record_of_a_batch_lies_beside_the_clip(
        self, server: Server, done: dict[str, Any]
    ) -> None:
        text = (server.folder / "open" / f"{done['id']}.json").read_text()
        record = GenerationRecord.model_validate_json(text)
        assert record.seed == done["seed"] == 7
        assert record.score is not None
        assert record.score.score == done["temporal_score"]
        assert record.stages.denoise_s == pytest.approx(
            done["stage_durations"]["denoise"], abs=1e-3
        )

    def test_the_same_seed_gives_the_same_bytes(
        self, client: httpx.Client, done: dict[str, Any]
    ) -> None:
        again = ended(client, post(client, seed=7).json()["id"])
        clips = [client.get(job["url"]).content for job in (done, again)]
        assert clips[0] == clips[1]

    def test_without_a_seed_each_clip_has_its_own(self, client: httpx.Client) -> None:
        seeds = {post(client).json()["seed"] for _ in range(2)}
        assert len(seeds) == 2

    @pytest.mark.thorough
    def test_events_show_every_step(self, client: httpx.Client) -> None:
        video_id = post(client, num_inference_steps=200).json()["id"]
        events = list(follow(client, video_id))
        names = [name for name, _ in events]
        progress = [job["progress"] for _, job in events]
        assert names[-1] == "video.completed"
        assert progress == sorted(progress)
        assert progress[-1] == 100
        assert len({value for value in progress if 0 < value < 99}) >= 2

    def test_polls_show_progress(self, client: httpx.Client) -> None:
        video_id = post(client, num_inference_steps=SLOW).json()["id"]
        seen = until(lambda: 5 <= client.get(f"/v1/videos/{video_id}").json()["progress"] <= 90)
        assert seen
        client.delete(f"/v1/videos/{video_id}")

    def test_cancel_stops_within_a_step_and_frees_the_model(self, client: httpx.Client) -> None:
        video_id = post(client, num_inference_steps=SLOW).json()["id"]
        until(lambda: client.get(f"/v1/videos/{video_id}").json()["status"] == "in_progress")
        start = time.monotonic()
        cancelled = client.post(f"/v1/videos/{video_id}/cancel").json()
        assert cancelled["status"] == "cancelled"
        ended(client, post(client, num_inference_steps=1).json()["id"])
        assert time.monotonic() - start < 8
        job = client.get(f"/v1/videos/{video_id}").json()
        assert job["status"] == "cancelled"
        assert job["completed_at"] is not None
        problem(client.get(f"/v1/videos/{video_id}/content"), 404, "not_found")

    def test_cancelling_what_has_ended_changes_nothing(
        self, client: httpx.Client, done: dict[str, Any]
    ) -> None:
        assert client.post(f"/v1/videos/{done['id']}/cancel").json() == done

    def test_delete_removes_job_and_files(self, server: Server, client: httpx.Client) -> None:
        job = ended(client, post(client).json()["id"])
        gone = client.delete(f"/v1/videos/{job['id']}")
        assert gone.json() == {"id": job["id"], "object": "video.deleted", "deleted": True}
        problem(client.get(f"/v1/videos/{job['id']}"), 404, "not_found")
        problem(client.get(job["url"]), 404, "not_found")
        assert not list((server.folder / "open").rglob(f"*{job['id']}*"))

    def test_delete_stops_a_clip_that_is_being_made(
        self, server: Server, client: httpx.Client
    ) -> None:
        video_id = post(client, num_inference_steps=SLOW).json()["id"]
        until(lambda: client.get(f"/v1/videos/{video_id}").json()["status"] == "in_progress")
        events = follow(client, video_id)
        next(events)
        client.delete(f"/v1/videos/{video_id}").raise_for_status()
        assert list(events)[-1][0] == "video.deleted"
        problem(client.get(f"/v1/videos/{video_id}"), 404, "not_found")
        ended(client, post(client, num_inference_steps=1).json()["id"], 15)
        assert not list((server.folder / "open").rglob(f"*{video_id}*"))

    def test_a_clip_is_not_there_before_it_is_whole(self, client: httpx.Client) -> None:
        video_id = post(client, num_inference_steps=SLOW).json()["id"]
        problem(client.get(f"/v1/videos/{video_id}/content"), 409, "not_ready")
        problem(client.get(f"/artifacts/{video_id}.mp4"), 409, "not_ready")
        client.delete(f"/v1/videos/{video_id}")

    def test_the_same_idempotency_key_gives_the_same_job(self, client: httpx.Client) -> None:
        headers = {"Idempotency-Key": f"k{time.time_ns()}"}
        first = post(client, num_inference_steps=1, headers=headers).json()
        again = post(client, num_inference_steps=1, headers=headers).json()
        assert again["id"] == first["id"]
        assert again["seed"] == first["seed"]
        other = post(client, num_inference_steps=2, headers=headers)
        problem(other, 409, "idempotency_conflict")

    def test_lists_in_pages(self, client: httpx.Client) -> None:
        made = [post(client, num_inference_steps=1).json()["id"] for _ in range(3)]
        page = client.get("/v1/videos", params={"limit": 2}).json()
        assert [job["id"] for job in page["data"]] == made[:0:-1]
        assert page["has_more"]
        assert (page["first_id"], page["last_id"]) == (made[2], made[1])
        rest = client.get("/v1/videos", params={"limit": 1, "after": made[1]}).json()
        assert [job["id"] for job in rest["data"]] == [made[0]]
        first = {"after": "video_0", "order": "desc"}  # older than any job
        assert client.get("/v1/videos", params=first).json()["data"] == []
        problem(client.get("/v1/videos", params={"after": "../x"}), 404, "not_found")

    def test_json_with_a_data_uri(self, client: httpx.Client) -> None:
        uri = "data:image/png;base64," + base64.b64encode(PHOTO).decode()
        body = {
            "prompt": "p",
            "input_reference": {"image_url": uri},
            "size": "96x64",
            "seconds": "3",
        }
        job = client.post("/v1/videos", json=body).json()
        assert (job["size"], job["seconds"], job["fps"]) == ("96x64", "3", 3)
        assert ended(client, job["id"])["status"] == "completed"

    def test_a_profile_brings_its_steps(self, client: httpx.Client) -> None:
        job = post(client, mode="optimized", profile="fast").json()
        assert (job["mode"], job["profile"]) == ("optimized", "fast")
        assert job["num_inference_steps"] == 20


@pytest.mark.thorough
class TestLora:
    def test_models_lists_adapters_by_name(self, client: httpx.Client) -> None:
        models = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
        assert set(models) == {"tiny", "press"}
        assert models["press"]["parent"] == "tiny"

    @pytest.mark.parametrize(
        "field",
        [{"lora": "press"}, {"lora": '{"name": "press", "scale": 1.0}'}, {"model": "press"}],
    )
    def test_an_adapter_changes_the_clip_and_comes_off_again(
        self, client: httpx.Client, done: dict[str, Any], field: dict[str, str]
    ) -> None:
        worn = ended(client, post(client, seed=7, **field).json()["id"])
        bare = ended(client, post(client, seed=7).json()["id"])
        assert worn["lora"] == {"name": "press", "scale": 1.0}
        clips = [client.get(job["url"]).content for job in (done, worn, bare)]
        assert clips[0] != clips[1]
        assert clips[0] == clips[2]

    @pytest.mark.parametrize("name", ["../loras/press", "/etc/passwd", "nobody", "not-a-lora"])
    def test_only_names_of_the_folder_are_known(self, client: httpx.Client, name: str) -> None:
        answer = post(client, lora=name)
        assert answer.status_code == 422
        assert answer.json()["error"]["param"] == "lora"
        assert "['press']" in answer.json()["error"]["message"]


class TestDownload:
    def test_ranges_are_exact(self, client: httpx.Client, done: dict[str, Any]) -> None:
        whole = client.get(done["url"])
        size = len(whole.content)
        assert whole.headers["accept-ranges"] == "bytes"
        for value, expected in {
            "bytes=0-9": whole.content[:10],
            "bytes=10-": whole.content[10:],
            "bytes=-5": whole.content[-5:],
        }.items():
            part = client.get(done["url"], headers={"Range": value})
            assert part.status_code == 206
            assert part.content == expected
            assert part.headers["content-range"].endswith(f"/{size}")
        beyond = client.get(done["url"], headers={"Range": f"bytes={size}-"})
        problem(beyond, 416, "bad_range")
        assert beyond.headers["content-range"] == f"bytes */{size}"
        for nonsense in ("lines=1-2", "bytes=9-1", "bytes=a-b", "bytes="):
            assert client.get(done["url"], headers={"Range": nonsense}).status_code == 200

    def test_the_etag_is_of_the_content(self, client: httpx.Client, done: dict[str, Any]) -> None:
        etag = client.get(done["url"]).headers["etag"]
        same = client.get(done["url"], headers={"If-None-Match": etag})
        assert (same.status_code, same.content) == (304, b"")
        part = client.get(done["url"], headers={"Range": "bytes=0-3", "If-Range": '"other"'})
        assert part.status_code == 200
        part = client.get(done["url"], headers={"Range": "bytes=0-3", "If-Range": etag})
        assert part.status_code == 206

    def test_head_and_thumbnail(self, client: httpx.Client, done: dict[str, Any]) -> None:
        head = client.head(done["url"])
        assert head.status_code == 200
        assert int(head.headers["content-length"]) > 1000
        path = f"/v1/videos/{done['id']}/content"
        thumbnail = client.get(path, params={"variant": "thumbnail"})
        assert thumbnail.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(thumbnail.content)).size == (96, 64)

    @pytest.mark.parametrize(
        "path",
        [
            "/artifacts/..%2Fjobs.db",
            "/artifacts/jobs.db",
            "/artifacts/%2e%2e/%2e%2e/etc/passwd",
            "/artifacts/..%2F..%2F..%2Fetc%2Fpasswd.mp4",
            "/v1/videos/..%2F..%2Fjobs/content",
            "/artifacts/%00.mp4",
        ],
    )
    def test_no_path_leads_out(self, client: httpx.Client, path: str) -> None:
        assert client.get(path).status_code == 404


class TestTemplates:
    FIELDS = {"place": "a rink", "action": "a goal"}
    PROMPT = (
        "Sport at a rink: a goal; the crowd reacts in the background. "
        "The camera follows from the side line."
    )

    def test_a_form_may_name_one(self, client: httpx.Client) -> None:
        data = {"template": "sport", "fields": json.dumps(self.FIELDS), "seed": "1"}
        answer = client.post("/generate-video", data=data, files={"image": ("a.png", PHOTO)})
        job = answer.raise_for_status().json()
        assert (job["prompt"], job["template"]) == (self.PROMPT, "sport")

    def test_json_may_name_one_beside_a_prompt(self, client: httpx.Client) -> None:
        address = "data:image/png;base64," + base64.b64encode(PHOTO).decode()
        body = {
            "template": "sport",
            "fields": self.FIELDS,
            "prompt": "Snow falls.",
            "input_reference": {"image_url": address},
        }
        job = client.post("/v1/videos", json=body).raise_for_status().json()
        assert (job["prompt"], job["template"]) == (f"{self.PROMPT} Snow falls.", "sport")


class TestBadInput:
    @pytest.mark.parametrize(
        ("fields", "param", "words"),
        [
            ({"prompt": ""}, "prompt", "required, but missing"),
            ({"prompt": "  "}, "prompt", "must say what happens"),
            ({"prompt": "word " * 300}, "prompt", "226 tokens"),
            ({"promt": "x"}, "promt", "no such field"),
            ({"num_frames": 10}, "num_frames", "must be 9, got 10"),
            ({"size": "720x480"}, "size", "height must be 64, got 480"),
            ({"size": "big"}, "size", "pattern"),
            ({"size": "96x64", "width": 97}, "size", "agree with width"),
            ({"num_inference_steps": 0}, "num_inference_steps", "greater than or equal to 1"),
            ({"guidance_scale": "nan"}, "guidance_scale", "finite"),
            ({"seed": -1}, "seed", "greater than or equal to 0"),
            ({"profile": "exact"}, "profile", "needs mode: optimized"),
            ({"mode": "optimized", "profile": "none"}, "profile", "must be one of"),
            ({"model": "sora-2"}, "model", "must be one of ['tiny', 'press']"),
            ({"seconds": "soon"}, "seconds", "whole number"),
            ({"webhook_url": "https://desk.example/"}, "webhook_url", "webhook_hosts"),
            ({"template": "brief"}, "template", "must be one of ['arrival', 'briefing'"),
            ({"template": "sport"}, "fields", "misses ['place', 'action']"),
            ({"template": "sport", "fields": '{"goal": "x"}'}, "fields", "has no ['goal']"),
            ({"template": "sport", "fields": "a rink"}, "fields", "must be a JSON object"),
            ({"fields": '{"place": "x"}'}, "fields", "needs a template"),
            ({"prompt": "a\0b"}, None, "NUL"),
            ({"image": b"GIF89a not a picture"}, "input_reference", "PNG, JPEG or WebP"),
            ({"image": b""}, "input_reference", "empty"),
        ],
    )
    def test_names_the_field_and_the_rule(
        self, client: httpx.Client, fields: dict[str, Any], param: str | None, words: str
    ) -> None:
        answer = post(client, **fields)
        error = problem(answer, 422, "invalid_request")
        assert words in error["message"]
        if param:
            assert error["param"] == param

    @pytest.mark.parametrize("path", ["/v1/videos", "/generate-video"])
    def test_a_prompt_or_a_template_is_needed(self, client: httpx.Client, path: str) -> None:
        answer = client.post(path, files={"image": ("a.png", PHOTO)})
        error = problem(answer, 422, "invalid_request")
        assert error["param"] == "prompt"
        assert "name a template" in error["message"]

    def test_an_image_is_needed(self, client: httpx.Client) -> None:
        answer = client.post("/v1/videos", json={"prompt": "p"})
        assert problem(answer, 422, "invalid_request")["param"] == "input_reference"

    def test_urls_are_not_fetched_unless_the_operator_says_so(self, client: httpx.Client) -> None:
        body = {"prompt": "p", "input_reference": {"image_url": "https://example.com/a.png"}}
        answer = client.post("/v1/videos", json=body)
        assert "fetches no URLs" in problem(answer, 422, "invalid_request")["message"]

    @pytest.mark.parametrize("address", ["file:///etc/passwd", "/etc/passwd", "http://127.0.0.1/"])
    def test_no_address_of_the_server_is_read(self, client: httpx.Client, address: str) -> None:
        body = {"prompt": "p", "input_reference": address}
        assert client.post("/v1/videos", json=body).status_code == 422

    @pytest.mark.parametrize(
        ("content", "kind", "status", "code"),
        [
            (b"{", "application/json", 400, "bad_json"),
            (b"[]", "application/json", 422, "invalid_request"),
            (b"a=1", "application/x-www-form-urlencoded", 415, "unsupported_media"),
            (b"x", "multipart/form-data", 400, "invalid_request"),
            (b"x" * 1_000_000, "application/json", 413, "too_large"),
        ],
    )
    def test_bad_bodies(
        self, client: httpx.Client, content: bytes, kind: str, status: int, code: str
    ) -> None:
        answer = client.post("/v1/videos", content=content, headers={"content-type": kind})
        problem(answer, status, code)

    def test_a_large_upload_is_refused_before_it_is_sent(self, server: Server) -> None:
        head = (
            "POST /generate-video HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n"
            "content-type: multipart/form-data; boundary=b\r\n\r\n"
        )
        part = b'--b\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n'
        chunks = [part, *[b"x" * 100_000] * 1000]
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head.encode())
            sent = 0
            for chunk in chunks:
                connection.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                sent += len(chunk)
                if select.select([connection], [], [], 0.05)[0]:
                    break
            assert connection.recv(100).startswith(b"HTTP/1.1 413")
        assert sent < 5_000_000

    def test_an_image_bomb_is_refused(self, client: httpx.Client) -> None:
        answer = post(client, image=bomb(60_000, 60_000))
        assert "pixels" in problem(answer, 422, "invalid_request")["message"]

    def test_unknown_addresses_and_methods(self, client: httpx.Client) -> None:
        problem(client.get("/v2/videos"), 404, "not_found")
        problem(client.put("/v1/videos"), 405, "method_not_allowed")


class TestService:
    def test_health_says_what_runs(self, client: httpx.Client) -> None:
        health = client.get("/health").json()
        assert set(health["deployments"]) == {"Ingress", "Dispatcher", "Generator", "Scorer"}
        assert health["deployments"]["Generator"]["replicas"] == {"RUNNING": 1}
        assert health["model"]["num_frames"] == 9
        assert health["model"]["loras"] == ["press"]
        assert health["queue"]["capacity"] == 100

    @pytest.mark.parametrize("prefix", ["", "/desks"])
    def test_the_address_alone_leads_to_the_docs(self, client: httpx.Client, prefix: str) -> None:
        page = client.get(f"{prefix}/", follow_redirects=True)
        assert (page.status_code, page.url.path) == (200, f"{prefix}/docs")

    def test_metrics_hold_score_and_latency(
        self, client: httpx.Client, done: dict[str, Any]
    ) -> None:
        def page() -> str | None:
            text = client.get("/metrics").raise_for_status().text
            names = ("temporal_score_bucket", "job_seconds_bucket", "stage_seconds_bucket")
            return text if all(f"ray_vidgen_{name}" in text for name in names) else None

        text = until(page, 60, 1)
        assert text is not None
        families = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
        assert len(families) == len(set(families))

    def test_the_clients_request_id_comes_back_and_is_in_the_logs(
        self, server: Server, client: httpx.Client
    ) -> None:
        headers = {"X-Request-ID": f"desk-{time.time_ns()}"}
        answer = post(client, num_inference_steps=1, headers=headers)
        assert answer.headers["x-request-id"] == headers["X-Request-ID"]
        job_id = ended(client, answer.json()["id"])["id"]

        wanted = ("clip started", "clip committed", "job completed")

        def entries() -> list[dict[str, Any]]:
            everything = [entry for message in wanted for entry in server.entries(message)]
            return [entry for entry in everything if entry["video_id"] == job_id]

        assert until(lambda: len(entries()) == 3, 20)
        assert {entry["http_request_id"] for entry in entries()} == {headers["X-Request-ID"]}

    def test_health_is_quick_while_a_clip_is_made(self, client: httpx.Client) -> None:
        video_id = post(client, num_inference_steps=SLOW).json()["id"]
        until(lambda: client.get(f"/v1/videos/{video_id}").json()["status"] == "in_progress")
        for _ in range(20):
            assert client.get("/health", timeout=5).status_code == 200
        client.delete(f"/v1/videos/{video_id}")


def follow(client: httpx.Client, video_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of a job: name and job."""
    with client.stream("GET", f"/v1/videos/{video_id}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be huge."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    pixels = zlib.compress(b"\0" * 100_000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads Linux's list of threads")
@pytest.mark.skipif(has_nvidia_gpu(), reason="where there is a GPU, it shall not wait for its CPU")
def test_those_who_make_clips_stand_back_behind_those_who_answer(
    server: Server, client: httpx.Client
) -> None:
    assert ended(client, post(client).json()["id"])["status"] == "completed"
    answering = niceness(server, "vidgen:Ingress")
    assert min(answering) == max(answering)
    for name in ("vidgen:Generator", "vidgen:Scorer"):
        assert max(niceness(server, name)) > max(answering)


def niceness(server: Server, title: str) -> list[int]:
    """Of every thread of these processes."""
    return [
        os.getpriority(os.PRIO_PROCESS, thread.id)
        for process in server.processes(title)
        for thread in process.threads()
    ]


def test_a_damaged_clip_is_gone_and_its_old_copy_still_valid(
    server: Server, client: httpx.Client
) -> None:
    job = ended(client, post(client, num_inference_steps=1).json()["id"])
    path = server.folder / "open" / f"{job['id']}.mp4"
    tag = client.get(job["url"]).headers["etag"]
    path.write_bytes(path.read_bytes()[:1000])
    for url in (job["url"], f"/v1/videos/{job['id']}/content"):
        problem(client.get(url), 410, "clip_lost")
        problem(client.get(url, headers={"Range": "bytes=0-10"}), 410, "clip_lost")
    path.unlink()
    problem(client.get(job["url"]), 410, "clip_lost")
    assert client.get(job["url"], headers={"If-None-Match": tag}).status_code == 304
