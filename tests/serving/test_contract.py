"""The schema and OpenAI's: the real client, the subset we agree with, and schemathesis."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openapi_spec_validator
import pytest
from serving_process import Server, picture
from test_api import ended

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(600)]

PHOTO = picture()


@pytest.fixture(scope="module")
def schema(server: Server) -> dict[str, Any]:
    document: dict[str, Any] = httpx.get(f"{server.url}/openapi.json").json()
    return document


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    folder = os.environ.get("VIDGEN_TEST_DATA")
    path = Path(folder or "") / "openai_videos_subset.openapi.json"
    if not folder or not path.is_file():
        pytest.skip("set VIDGEN_TEST_DATA to a folder with OpenAI's subset")
    document: dict[str, Any] = json.loads(path.read_text())
    # Ours: other sizes, as theirs take other models, and a state for what was cancelled.
    schemas = document["components"]["schemas"]
    schemas["VideoSize"] = {"type": "string", "pattern": r"^\d+x\d+$"}
    schemas["VideoStatus"]["enum"].append("cancelled")
    return document


# OpenAI has announced the end of its own service; the form of the API stays useful.
@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
class TestOpenAIClient:
    def test_create_poll_download_list_delete(self, server: Server, tmp_path: Path) -> None:
        from openai import NotFoundError, OpenAI

        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        video = client.videos.create_and_poll(
            prompt="push in",
            input_reference=("photo.png", PHOTO, "image/png"),
            seconds="5",
            poll_interval_ms=100,
            extra_body={"seed": 11, "num_inference_steps": 2},
        )
        assert (video.status, video.progress, video.error) == ("completed", 100, None)
        assert video.seconds == "5"
        assert video.model_extra is not None
        assert video.model_extra["seed"] == 11
        client.videos.download_content(video.id).write_to_file(tmp_path / "clip.mp4")
        assert (tmp_path / "clip.mp4").read_bytes()[4:8] == b"ftyp"
        assert client.videos.list(limit=1).data[0].id == video.id
        assert video.id in [other.id for other in client.videos.list(limit=2, order="desc")]
        assert client.videos.delete(video.id).deleted
        with pytest.raises(NotFoundError) as caught:
            client.videos.retrieve(video.id)
        assert caught.value.code == "not_found"
        assert caught.value.request_id

    def test_models(self, server: Server) -> None:
        from openai import NotFoundError, OpenAI

        client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
        assert [model.id for model in client.models.list()] == ["tiny", "press"]
        assert client.models.retrieve("press").model_dump()["parent"] == "tiny"
        with pytest.raises(NotFoundError):
            client.models.retrieve("sora-2")


class TestSubset:
    """Where OpenAI's API has a route, a field or a parameter, ours means the same."""

    SHARED = ("post /videos", "get /videos", "get /videos/{video_id}", "delete /videos/{video_id}")
    SHARED += ("get /videos/{video_id}/content",)

    def check(self, theirs: dict[str, Any], name: str, value: object) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": theirs["components"]}
        jsonschema.Draft202012Validator(schema).validate(value)

    def test_answers_have_their_form(self, client: httpx.Client, theirs: dict[str, Any]) -> None:
        files = {"input_reference": PHOTO}
        for steps in ("1", "1000"):
            fields = {"prompt": "p", "num_inference_steps": steps}
            job = client.post("/v1/videos", data=fields, files=files).json()
            self.check(theirs, "VideoResource", job)
        cancelled = client.post(f"/v1/videos/{job['id']}/cancel").json()
        self.check(theirs, "VideoResource", cancelled)
        page = client.get("/v1/videos", params={"limit": 5}).json()
        self.check(theirs, "VideoListResource", page)
        self.check(theirs, "VideoResource", ended(client, page["data"][1]["id"]))
        deleted = client.delete(f"/v1/videos/{job['id']}").json()
        self.check(theirs, "DeletedVideoResource", deleted)

    def test_routes_and_parameters_are_theirs(
        self, schema: dict[str, Any], theirs: dict[str, Any]
    ) -> None:
        for route in self.SHARED:
            method, path = route.split()
            operation = theirs["paths"][path][method]
            ours = schema["paths"][f"/v1{path}"][method]
            names = {parameter["name"] for parameter in ours.get("parameters", [])}
            assert {parameter["name"] for parameter in operation.get("parameters", [])} <= names
            assert set(operation["responses"]) <= set(ours["responses"])
        schemas = theirs["components"]["schemas"]
        body = schema["paths"]["/v1/videos"]["post"]["requestBody"]["content"]
        for kind, name in {
            "multipart/form-data": "CreateVideoMultipartBody",
            "application/json": "CreateVideoJsonBody",
        }.items():
            assert set(schemas[name]["properties"]) <= set(body[kind]["schema"]["properties"])


class TestSchema:
    def test_it_is_valid_openapi(self, schema: dict[str, Any]) -> None:
        openapi_spec_validator.validate(schema)

    def test_every_route_is_described(self, schema: dict[str, Any]) -> None:
        for path, methods in schema["paths"].items():
            for method, operation in methods.items():
                assert operation["summary"], (method, path)
                assert operation["description"], (method, path)
                assert operation["responses"]["200"]["description"], (method, path)

    def test_every_error_has_the_same_shape(self, schema: dict[str, Any]) -> None:
        problem = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
        for path, methods in schema["paths"].items():
            for method, operation in methods.items():
                for code, answer in operation["responses"].items():
                    is_report = path.startswith("/health") and code == "503"  # for load balancers
                    if int(code) >= 400 and not is_report:
                        assert answer["content"] == problem, (method, path, code)

    @pytest.mark.slow
    def test_no_answer_is_undocumented_and_none_is_5xx(
        self, server: Server, tmp_path: Path
    ) -> None:
        checks = (
            "not_a_server_error,status_code_conformance,content_type_conformance,"
            "response_headers_conformance,response_schema_conformance"
        )
        command = [str(Path(sys.executable).parent / "schemathesis"), "run"]
        command += [f"{server.url}/openapi.json", "--checks", checks, "--max-examples", "20"]
        # A stream of events ends with its job, which comes within seconds.
        command += ["--request-timeout", "60", "--workers", "1"]
        command += ["--phases", "examples,coverage,fuzzing,stateful", "--seed", "1", "--no-color"]
        command += ["--suppress-health-check", "all"]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
