"""Requests as OpenAI's, vllm-omni's, sglang's and FastVideo's clients send them."""

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from in_process import make_context, served
from serving_process import picture

PHOTO = picture()
BASE64 = base64.b64encode(PHOTO).decode()
URI = f"data:image/png;base64,{BASE64}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_adapter: Path) -> Path:
    folder = tmp_path_factory.mktemp("api")
    shutil.copytree(tiny_adapter, folder / "loras" / "press")
    return folder


@pytest.fixture(scope="module")
def url(folder: Path, tiny_overrides: dict[str, object]) -> Iterator[str]:
    arguments = {
        "settings": tiny_overrides,
        "max_image_bytes": 300_000,
        "lora_folder": str(folder / "loras"),
        "model_aliases": {"sora-2": "tiny", "house-style": "press"},
        "max_queued_jobs": 10_000,
    }
    with served(make_context(folder, **arguments)) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=30) as session:
        yield session


def send(client: httpx.Client, path: str = "/v1/videos", **body: Any) -> httpx.Response:
    """A JSON request with a prompt and an image, unless told otherwise."""
    given = {"prompt": "push in", "input_reference": {"image_url": URI}, **body}
    return client.post(path, json=given)


def made(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    return job


def refused(answer: httpx.Response, param: str | None, words: str, status: int = 422) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert words in error["message"]
    assert error["param"] == param


def stored(folder: Path, job: dict[str, Any]) -> bytes:
    """The image that the job is made from."""
    return (folder / "out" / "uploads" / job["id"]).read_bytes()


def uploaded(client: httpx.Client, folder: Path, image: bytes) -> bytes:
    """What is stored of an image that is uploaded plainly."""
    files = {"input_reference": ("photo", image)}
    return stored(folder, made(client.post("/v1/videos", data={"prompt": "p"}, files=files)))


class TestImages:
    @pytest.mark.parametrize(
        "image",
        [
            {"input_reference": URI},
            {"input_reference": BASE64},
            {"input_reference": {"image_url": URI}},
            {"input_reference": {"image_url": {"url": URI}}},
            {"input_reference": {"type": "image_url", "image_url": {"url": URI, "detail": "high"}}},
            {"input_reference": {"type": "input_image", "image_url": URI}},
            {"image": BASE64},
            {"image_reference": {"image_url": URI}},
            {"reference_url": URI},
            {"input_reference": "", "reference_url": URI},
        ],
    )
    def test_json_holds_it_in_any_of_these_forms(
        self, client: httpx.Client, folder: Path, image: dict[str, Any]
    ) -> None:
        job = made(client.post("/v1/videos", json={"prompt": "p", **image}))
        assert stored(folder, job) == uploaded(client, folder, PHOTO)

    @pytest.mark.parametrize(
        "part",
        [
            (None, PHOTO, "application/octet-stream"),  # no file name
            ("", PHOTO, "image/png"),
            ("photo.png", PHOTO, "image/png"),
            (None, URI, None),
            (None, BASE64, None),
            (None, json.dumps({"image_url": URI}), "application/json"),
        ],
    )
    @pytest.mark.parametrize("name", ["input_reference", "image", "image_reference"])
    def test_a_form_holds_it_in_any_of_these_forms(
        self, client: httpx.Client, folder: Path, name: str, part: tuple[Any, ...]
    ) -> None:
        form = {"prompt": (None, "p"), name: part}
        job = made(client.post("/v1/videos", files=form))
        assert stored(folder, job) == uploaded(client, folder, PHOTO)

    def test_a_jpeg_and_a_webp_without_a_file_name(
        self, client: httpx.Client, folder: Path
    ) -> None:
        for kind in ("JPEG", "WEBP"):
            image = picture(kind=kind)
            form = {"prompt": (None, "p"), "image": (None, image, "application/octet-stream")}
            job = made(client.post("/v1/videos", files=form))
            assert stored(folder, job) == uploaded(client, folder, image)

    @pytest.mark.parametrize(
        ("image", "words"),
        [
            ({"file_id": "file_1"}, "this server stores no files"),
            ({"url": URI}, "must be an object"),
            ({"type": "text", "image_url": URI}, "must be an object"),
            ("outputs/uploads/photo.png", "must be an uploaded file, a data URI"),
            ("aGVsbG8=", "must be an uploaded file, a data URI"),
            ("data:image/png;base64,%%%", "must hold base64"),
            ([URI], "got list"),
            (7, "got int"),
            ({"image_url": ""}, "got str"),
        ],
    )
    def test_what_is_no_image_is_named(self, client: httpx.Client, image: Any, words: str) -> None:
        refused(send(client, input_reference=image), "input_reference", words)

    def test_two_images_are_one_too_many(self, client: httpx.Client) -> None:
        refused(send(client, reference_url=URI), "input_reference", "given twice")

    @pytest.mark.parametrize("name", ["input_reference", "image_reference", "reference_url"])
    def test_urls_follow_the_servers_rule(self, client: httpx.Client, name: str) -> None:
        body = {"prompt": "p", name: "https://example.com/a.png"}
        refused(client.post("/v1/videos", json=body), "input_reference", "fetches no URLs")


class TestSeconds:
    @pytest.mark.parametrize(
        ("asked", "fps"),
        [("9", 1), (9, 1), ("3", 3), ("2", 5), ("5", 2), (1, 9), ("1.0", 9)],
    )
    def test_the_answer_is_what_was_asked(self, client: httpx.Client, asked: Any, fps: int) -> None:
        job = made(send(client, seconds=asked))
        assert (job["seconds"], job["fps"]) == (str(int(float(asked))), fps)

    @pytest.mark.parametrize("asked", ["8", "4", "7", 10, 60])
    def test_what_whole_frame_rates_cannot_give_is_refused_with_what_they_can(
        self, client: httpx.Client, asked: Any
    ) -> None:
        words = f"9 frames last one of [1, 2, 3, 5, 9] s, got {asked}"
        refused(send(client, seconds=asked), "seconds", words)

    @pytest.mark.parametrize("asked", ["soon", "0", "-1", "1.5", "1e400", "nan", "", " "])
    def test_what_is_no_whole_number_is_refused(self, client: httpx.Client, asked: str) -> None:
        answer = send(client, seconds=asked)
        if asked:
            refused(answer, "seconds", "must be a whole number such as 6")
        else:
            made(answer)  # an empty field is left out

    def test_beside_fps_they_must_agree(self, client: httpx.Client) -> None:
        assert made(send(client, seconds="2", fps=4))["fps"] == 4
        assert made(send(client, seconds="2", fps=5))["fps"] == 5
        refused(send(client, seconds="4", fps=24), "seconds", "9 frames last one of")

    @pytest.mark.parametrize("seconds", [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 25, 49])
    def test_what_49_frames_can_last(self, seconds: int) -> None:
        from vidgen_ray.serving.http.clip_settings import fps_of

        assert int(49 / fps_of(seconds, 49, None) + 0.5) == seconds

    @pytest.mark.parametrize("seconds", [9, 15, 20, 24, 30])
    def test_what_49_frames_cannot_last(self, seconds: int) -> None:
        from vidgen_ray.serving.http.clip_settings import fps_of
        from vidgen_ray.serving.http.problems import ApiError

        with pytest.raises(ApiError, match=r"49 frames last one of \[1, 2, .*16, 25, 49\] s"):
            fps_of(str(seconds), 49, None)


class TestOtherClients:
    def test_vllm_omni(self, client: httpx.Client) -> None:
        form = {
            "prompt": "A bear",
            "negative_prompt": "blur",
            "width": "96",
            "height": "64",
            "num_frames": "9",
            "fps": "4",
            "seconds": "2",
            "num_inference_steps": "2",
            "guidance_scale": "3.5",
            "seed": "42",
            "user": "desk",
            "size": "",
            "extra_params": json.dumps({"image_fit": "pad"}),
            "lora": json.dumps({"lora_name": "press", "lora_scale": 0.5}),
            "enable_frame_interpolation": "false",
        }
        job = made(client.post("/v1/videos", data=form, files={"input_reference": PHOTO}))
        assert (job["image_fit"], job["fps"], job["guidance_scale"]) == ("pad", 4, 3.5)
        assert job["lora"] == {"name": "press", "scale": 0.5}

    def test_sglang_and_fastvideo(self, client: httpx.Client) -> None:
        body = {
            "prompt": "A bear",
            "reference_url": URI,
            "model": "sora-2",
            "seconds": 2,
            "size": "",
            "fps": None,
            "seed": 1024,
            "enable_teacache": False,
            "extra_body": {"num_inference_steps": 2, "guidance_scale": 4},
        }
        job = made(client.post("/v1/videos", json=body))
        assert (job["num_inference_steps"], job["guidance_scale"], job["fps"]) == (2, 4, 5)
        assert job["seed"] == 1024

    @pytest.mark.parametrize(
        ("body", "param", "words"),
        [
            ({"extra_params": {"flow_shift": 5}}, "flow_shift", "no such field"),
            ({"extra_params": {"fps": 3}, "fps": 4}, "fps", "given twice, also in extra_params"),
            ({"extra_params": "x"}, "extra_params", "must be a JSON object of further fields"),
            ({"extra_body": [1]}, "extra_body", "must be an object of further fields"),
            ({"enable_teacache": True}, "enable_teacache", "no such feature"),
            ({"guidance_scale_2": 3}, "guidance_scale_2", "no such field"),
            ({"output_path": "/tmp"}, "output_path", "no such field"),
            ({"num_frames": True}, "num_frames", "must not be true or false"),
            ({"guidance_scale": True}, "guidance_scale", "must not be true or false"),
            ({"size": "96x64", "width": 97}, "size", "must agree with width and height"),
            ({"negative_prompt": "x", "guidance_scale": 1}, "negative_prompt", "has no effect"),
            ({"model": "gpt-4"}, "model", "['tiny', 'press', 'house-style', 'sora-2']"),
        ],
    )
    def test_what_has_no_effect_here_is_refused(
        self, client: httpx.Client, body: dict[str, Any], param: str, words: str
    ) -> None:
        refused(send(client, **body), param, words)

    def test_an_alias_names_the_model_or_an_adapter(self, client: httpx.Client) -> None:
        assert made(send(client, model="sora-2"))["lora"] is None
        assert made(send(client, model="house-style"))["lora"]["name"] == "press"
        assert made(send(client, lora="house-style"))["lora"]["name"] == "press"

    def test_empty_form_fields_mean_absent(self, client: httpx.Client) -> None:
        names = ("negative_prompt", "size", "seconds", "fps", "seed", "lora", "model", "profile")
        form = {"prompt": "p", **dict.fromkeys(names, "")}
        job = made(client.post("/v1/videos", data=form, files={"input_reference": PHOTO}))
        assert (job["fps"], job["lora"], job["profile"]) == (8, None, None)

    def test_forms_may_write_objects_with_brackets(self, client: httpx.Client) -> None:
        form = {
            "prompt": "p",
            "input_reference[type]": "image_url",
            "input_reference[image_url]": URI,
            "lora[name]": "press",
            "lora[scale]": "0.5",
        }
        parts = {name: (None, value) for name, value in form.items()}
        assert made(client.post("/v1/videos", files=parts))["lora"]["scale"] == 0.5


class TestHostileJson:
    @pytest.mark.parametrize(
        "name", ["prompt", "fields", "lora", "input_reference", "extra_body", "seconds", "x"]
    )
    @pytest.mark.parametrize("levels", [60, 900, 100_000])
    @pytest.mark.parametrize("bracket", ["[", '{"a":'])
    def test_deep_nesting_in_any_field_is_refused(
        self, client: httpx.Client, name: str, levels: int, bracket: str
    ) -> None:
        deep = bracket * levels + "1" + {"[": "]", '{"a":': "}"}[bracket] * levels
        levels_ok = len(deep) < 290_000
        json_body = f'{{"prompt": "p", "input_reference": "{URI}", "{name}": {deep}}}'
        headers = {"content-type": "application/json"}
        answer = client.post("/v1/videos", content=json_body, headers=headers)
        assert answer.status_code in {400, 413, 422}, answer.text
        if levels_ok and name in {"fields", "lora", "input_reference", "extra_body"}:
            form = {"prompt": "p", name: deep}
            files = {} if name == "input_reference" else {"input_reference": PHOTO}
            answer = client.post("/v1/videos", data=form, files=files or {"x": (None, "")})
            assert answer.status_code in {400, 413, 422}, answer.text

    @pytest.mark.parametrize(
        ("body", "status", "words"),
        [
            ('{"prompt": "a", "prompt": "b"}', 422, "given twice"),
            ('{"\\ud800": 1}', 422, "no such field"),
            ('{"a\\nb": 1}', 422, "no such field"),
            ('{"extra_body": {"\\udc00": 1}}', 422, "no such field"),
            ('{"prompt": "\\ud800"}', 422, "unicode string"),
            (
                '{"fields": {"\\ud800": "\\ud800"}, "template": "sport"}',
                422,
                "fields: must be Unicode",
            ),
            ('{"seed": 1e999}', 422, "seed"),
            ("9" * 5000, 400, "must be JSON"),
            ("\xff", 400, "must be JSON"),
        ],
    )
    def test_text_that_cannot_be_kept_is_refused(
        self, client: httpx.Client, body: str, status: int, words: str
    ) -> None:
        headers = {"content-type": "application/json"}
        answer = client.post("/v1/videos", content=body.encode("latin-1"), headers=headers)
        assert answer.status_code == status, answer.text
        assert words in answer.json()["error"]["message"]


class TestRemix:
    def test_the_image_stays_and_the_prompt_is_new(
        self, client: httpx.Client, folder: Path
    ) -> None:
        first = made(send(client, seed=7, lora="press", fps=4, guidance_scale=3, user="desk"))
        again = made(client.post(f"/v1/videos/{first['id']}/remix", json={"prompt": "pan left"}))
        assert again["id"] != first["id"]
        assert again["remixed_from_video_id"] == first["id"]
        assert again["prompt"] == "pan left"
        for name in ("seed", "lora", "fps", "guidance_scale", "size", "num_inference_steps"):
            assert again[name] == first[name]
        assert stored(folder, again) == stored(folder, first)
        body = {"prompt": "p", "seed": 8, "fps": 3}
        other = made(client.post(f"/v1/videos/{first['id']}/remix", json=body))
        assert (other["seed"], other["fps"], other["guidance_scale"]) == (8, 3, 3)

    def test_a_job_that_is_not_there_cannot_be_remixed(self, client: httpx.Client) -> None:
        answer = client.post("/v1/videos/video_0/remix", json={"prompt": "p"})
        refused(answer, None, "there is no video", 404)
        job = made(send(client))
        answer = client.post(f"/v1/videos/{job['id']}/remix", json={})
        refused(answer, "prompt", "required, but missing")

    def test_the_same_key_gives_the_same_remix(self, client: httpx.Client) -> None:
        job, other = made(send(client)), made(send(client))
        path, headers = f"/v1/videos/{job['id']}/remix", {"Idempotency-Key": job["id"]}
        first = made(client.post(path, json={"prompt": "p"}, headers=headers))
        assert made(client.post(path, json={"prompt": "p"}, headers=headers)) == first
        path = f"/v1/videos/{other['id']}/remix"
        answer = client.post(path, json={"prompt": "p"}, headers=headers)
        refused(answer, None, "was used for another request", 409)


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
class TestOpenAI:
    @pytest.fixture
    def openai(self, url: str) -> Any:
        from openai import OpenAI

        return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    @pytest.mark.parametrize("reference", [("a.png", PHOTO, "image/png"), PHOTO])
    def test_create_and_remix(self, openai: Any, reference: Any) -> None:
        fields = {"model": "sora-2", "seconds": "2", "size": "96x64"}
        extra = {"seed": 3, "lora": {"name": "press", "scale": 0.5}, "template": None}
        video = openai.videos.create(
            prompt="p", input_reference=reference, extra_body=extra, **fields
        )
        assert (video.seconds, video.size, video.status) == ("2", "96x64", "queued")
        assert video.model_extra["seed"] == 3
        remix = openai.videos.remix(video.id, prompt="pan left")
        assert remix.remixed_from_video_id == video.id

    def test_a_loop_may_delete_what_it_lists(self, openai: Any, client: httpx.Client) -> None:
        for _ in range(7):
            made(send(client))
        seen = [openai.videos.delete(video.id).id for video in openai.videos.list(limit=3)]
        assert len(seen) == len(set(seen)) >= 7
        assert openai.videos.list().data == []

    def test_errors_have_their_attributes(self, openai: Any) -> None:
        from openai import NotFoundError, UnprocessableEntityError

        with pytest.raises(UnprocessableEntityError) as caught:
            openai.videos.create(prompt="p", input_reference=PHOTO, seconds="20")
        error = caught.value
        assert (error.code, error.param, error.type) == (
            "invalid_request",
            "seconds",
            "invalid_request_error",
        )
        with pytest.raises(NotFoundError) as missing:
            openai.videos.retrieve("video_0")
        assert missing.value.code == "not_found"


def test_validation_errors_are_400_where_the_operator_says_so(
    tmp_path: Path, tiny_overrides: dict[str, object]
) -> None:
    with (
        served(make_context(tmp_path, settings=tiny_overrides, validation_status=400)) as url,
        httpx.Client(base_url=url) as client,
    ):
        refused(send(client, fps=0), "fps", "greater than or equal to 1", 400)
        refused(client.get("/v1/videos", params={"limit": -1}), "limit", "greater than", 400)
        made(send(client))
