"""A jobs file in any of its formats becomes requests, or a list of everything wrong with it."""

import bz2
import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from vidgen_ray.config import Config, LoRA, Profile
from vidgen_ray.errors import RequestError, VidgenError
from vidgen_ray.generation.jobs_file import JobsFile, RowProblem, read_jobs
from vidgen_ray.image_io import read_image
from vidgen_ray.request import derive_seed

CONFIG = Config(profiles={"exact": Profile(), "fast": Profile(num_inference_steps=20)})
JOB = {"id": "a", "image": "a.png", "prompt": "rain falls"}

Read = Callable[..., JobsFile]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Write `content` to a file of that name and read it as a jobs file."""

    def write_and_read(content: str | bytes, name: str = "jobs.jsonl") -> JobsFile:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
        return read_jobs(str(tmp_path / name), CONFIG)

    return write_and_read


def line(**fields: Any) -> str:
    """A JSONL row of a sound job, with `fields` set or, where they are None, left out."""
    return json.dumps({k: v for k, v in {**JOB, **fields}.items() if v is not None})


def nested(levels: int) -> dict[str, Any]:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return dict(value)


def problems(jobs: JobsFile) -> list[str]:
    return [str(problem) for problem in jobs.problems]


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("jobs.jsonl", line() + "\n\n  \n" + line(id="b"), [1, 4]),
        ("jobs.ndjson", line() + "\r\n" + line(id="b") + "\r\n", [1, 2]),
        ("jobs.json", f"[\n{line()},\n\n\n{line(id='b')}]\n", [2, 5]),
        ("jobs.jsonl", f"[{line()},\n{line(id='b')}]", [1, 2]),
        ("jobs.csv", 'id,image,prompt\na,a.png,rain falls\nb,a.png,"rain falls"\n', [2, 3]),
        ("jobs.csv", "id;image;prompt\r\na;a.png;rain falls\r\n;;\r\nb;a.png;rain falls", [2, 4]),
        ("jobs.CSV", "\nid\timage\tprompt\na\ta.png\train falls\n\nb\ta.png\train falls", [3, 5]),
        (
            "jobs.csv",
            "sep=;\r\nid;image;prompt\r\na;a.png;rain falls\r\nb;a.png;rain falls",
            [3, 4],
        ),
        ("jobs.csv", "sep=,\nid,image,prompt\na,a.png,rain falls\nb,a.png,rain falls", [3, 4]),
        ("jobs.csv", "id , image,prompt,,\na,a.png,rain falls,,\nb,a.png,rain falls,,", [2, 3]),
        ("jobs", line() + "\n" + line(id="b"), [1, 2]),
        ("jobs", f"\n[{line()},\n{line(id='b')}]", [2, 3]),
        ("jobs.txt", "id,image,prompt\na,a.png,rain falls\nb,a.png,rain falls", [2, 3]),
    ],
)
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_each_format_gives_the_same_requests_and_an_editors_line_numbers(
    read: Read, tmp_path: Path, name: str, content: str, lines: list[int], bom: bytes
) -> None:
    jobs = read(bom + content.encode(), name)
    assert jobs.problems == []
    assert [job.line for job in jobs.requests] == lines
    assert [job.request.id for job in jobs.requests] == ["a", "b"]
    for job in jobs.requests:
        assert job.request.prompt == "rain falls"
        assert job.request.image == str(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["jobs.jsonl", "jobs.json", "jobs.csv"])
@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_a_line_feed_ends_a_line(read: Read, name: str, mark: str) -> None:
    text = f"rain{mark}falls"
    rows = [json.dumps({**JOB, "id": name, "prompt": text}, ensure_ascii=False) for name in "ab"]
    contents = {
        "jobs.jsonl": "\n".join(rows),
        "jobs.json": f"[{','.join(rows)}]",
        "jobs.csv": f"id,image,prompt\na,a.png,{text}\nb,b.png,{text}\n",
    }
    jobs = read(contents[name], name)
    assert jobs.problems == []
    assert [(job.request.id, job.request.prompt) for job in jobs.requests] == [
        ("a", text),
        ("b", text),
    ]


@pytest.mark.skipif(os.name == "nt", reason="there a backslash is right")
@pytest.mark.parametrize("path", ["photos\\a.png", ".\\photos\\a.png", "..\\photos\\a.png"])
def test_a_relative_path_of_windows_is_one_of_this_machine(
    read: Read, tmp_path: Path, path: str
) -> None:
    (job,) = read(line(image=path, lora=path)).requests
    expected = str(tmp_path / path.replace("\\", "/"))
    assert os.path.normpath(job.request.image) == os.path.normpath(expected)
    assert job.request.lora is not None
    assert "\\" not in job.request.lora.path


def test_a_csv_record_starts_on_its_first_line(read: Read) -> None:
    jobs = read('id,image,prompt\na,a.png,"rain\n\nfalls"\nb,b.png,p', "jobs.csv")
    assert [(job.line, job.request.prompt) for job in jobs.requests] == [
        (2, "rain\n\nfalls"),
        (5, "p"),
    ]


def test_csv_cells_have_the_types_of_their_fields(read: Read) -> None:
    jobs = read(
        "id,image,prompt,seed,guidance_scale,allow_untrained_shape,lora,metadata,fps,mode\n"
        'a,a.png,"x, y",7,6.5,TRUE,/l.safetensors,"{""desk"": 1}",,optimized\n'
        'b,a.png,p,5.0,7,false,"{""path"": ""~/l"", ""scale"": 0.5}",,10,\n',
        "jobs.csv",
    )
    assert jobs.problems == []
    first, second = (job.request for job in jobs.requests)
    assert (first.prompt, first.seed, first.guidance_scale) == ("x, y", 7, 6.5)
    assert (first.allow_untrained_shape, first.metadata, first.fps) == (True, {"desk": 1}, 8)
    assert (first.lora, first.mode, first.profile) == (
        LoRA(path="/l.safetensors"),
        "optimized",
        "exact",
    )
    assert (second.seed, second.guidance_scale, second.fps) == (5, 7.0, 10)
    assert second.lora == LoRA(path="~/l", scale=0.5)


def test_a_field_left_out_takes_its_default_and_the_seed_follows_the_id(read: Read) -> None:
    (job,) = read(line(seed=None)).requests
    assert job.request.num_frames == 49
    assert job.request.seed == derive_seed("a")
    (job,) = read('{"id": "a", "image": "a", "prompt": "p", "seed": null, "lora": null}').requests
    assert job.request.seed == derive_seed("a")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (line(image=None), "line 1 (id a): image: required, but missing"),
        (line(prompt=None, promt="p"), "promt: no such field; did you mean 'prompt'?"),
        (line(negativePrompt="p"), "negativePrompt: no such field; did you mean 'negative_prompt'"),
        (line(zzz=1), "zzz: no such field; the fields are id, image"),
        (line(**{"a\nb": 1}), r"'a\nb': no such field"),
        (line(seed="5"), "seed: must be an integer such as 42, got '5'"),
        (line(seed=5.5), "seed: must be an integer such as 42, got 5.5"),
        (line(num_frames=True), "num_frames: must be an integer such as 42, got True"),
        (line(guidance_scale="6"), "guidance_scale: must be a number such as 6.5, got '6'"),
        (line(guidance_scale=float("nan")), "guidance_scale: must have finite numbers, got nan"),
        (line(guidance_scale=10**400), "guidance_scale: "),
        ('{"id": "a", "image": "a", "prompt": "p", "fps": 1e999}', "fps: must be an integer"),
        (line(metadata={"a": [float("inf")]}), "metadata: must have finite numbers"),
        (line(metadata=[1]), "metadata: must be an object"),
        (line(metadata=nested(51)), "metadata: must have at most 50 levels"),
        (line(metadata=nested(900)), "metadata: must have at most 50 levels"),
        (line(allow_untrained_shape=1), "allow_untrained_shape: must be true or false, got 1"),
        (line(lora=7), "lora: must be a path or"),
        (line(lora={"path": "l", "scale": "1"}), "lora: must be a path or"),
        (line(lora={"path": "l", "scale": 10**400}), "lora"),
        (line(lora={"path": "l", "weight": 1}), "lora: must be a path or"),
        (line(lora={"path": "l", "scale": 5}), "lora.scale: input should be less than or equal"),
        (line(id=7), "line 1: id: must be text, got 7"),
        (line(id="../a"), "line 1: id: must be 1 to 120 letters"),
        (line(image=""), "image: string should have at least 1 character"),
        (line(prompt=" "), "prompt: must say what happens"),
        (line(prompt="\ud800"), "prompt: must be whole characters"),
        (line(metadata={"\udc00": 1}), "metadata: must be whole characters"),
        (line(fps=900), "fps: input should be less than or equal to 60, got 900"),
        (line(seed=2**63), "seed: input should be less than"),
        (line(image_fit="stretch"), "image_fit: input should be 'crop' or 'pad', got 'stretch'"),
        (line(mode="fast"), "mode: input should be 'baseline' or 'optimized', got 'fast'"),
        (line(profile="fast"), "profile: 'fast' needs mode: optimized"),
        (
            line(negative_prompt="fog", guidance_scale=1),
            "negative_prompt: has no effect at guidance_scale 1; set guidance_scale above 1",
        ),
        (line(image="C:\\photos\\a.png"), "image: must be a path of this machine or a URL, got"),
        (line(image="\\\\nas\\a.png"), "image: must be a path of this machine or a URL, got"),
        (line(lora="d:/loras/press"), "lora: must be a path of this machine or a URL, got"),
        (line(image="photos\new.png"), "image: must be a path without control characters, got"),
        (
            '{"id": "a", "image": "p\\\\a.png", "prompt": "p", "fps": 0}',
            "fps: input should be",
        ),
        (
            line(mode="optimized", profile="x"),
            "profile: must be one of ['exact', 'fast'], got 'x'",
        ),
        ('{"id": "a", "id": "b", "image": "a", "prompt": "p"}', "set a field once, got ['id']"),
    ],
)
def test_a_wrong_row_is_a_problem_that_names_line_field_rule_and_value(
    read: Read, row: str, expected: str
) -> None:
    sound = line(id="z")
    for name, content in {"a.jsonl": f"{row}\n{sound}", "a.json": f"[{row},\n{sound}]"}.items():
        jobs = read(content, name)
        (message,) = problems(jobs)
        assert expected in message
        assert "\n" not in message
        assert [job.request.id for job in jobs.requests] == ["z"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ('{"id": "a" "image": 1}', "line 1: must be valid JSON, got a fault at column 12"),
        (f"{line()} {{}}", f"line 1: must be valid JSON, got a fault at column {len(line()) + 2}"),
        ('{"id":' * 100_000, "line 1: must be valid JSON"),
        (
            '{"image": "photos\\desk"}',
            "line 1: must be valid JSON, got a fault at column 18",
        ),
        ("7" * 5000, "line 1: must be valid JSON"),
        ("{'id': 'a'}", "line 1: must be valid JSON, got a fault at column 2"),
        ('"a"', "line 1: must be an object"),
        ("null", "line 1: must be an object"),
    ],
)
def test_a_line_that_is_no_object_is_a_problem(read: Read, row: str, expected: str) -> None:
    jobs = read(f"{row}\n{line(id='z')}")
    (message,) = problems(jobs)
    assert message.startswith(expected)
    assert [job.request.id for job in jobs.requests] == ["z"]


def test_one_row_can_have_many_problems_and_all_are_told(read: Read) -> None:
    text = line(seed="5", fps=0, promt="x", profile="fast", prompt=None)
    fields = [problem.field for problem in read(text).problems]
    assert sorted(fields, key=str) == ["fps", "profile", "promt", "seed"]


def test_problems_come_in_the_order_of_the_file_and_sound_rows_stay(read: Read) -> None:
    jobs = read("\n".join([line(), "{", line(id="b", fps=0), line(id="c")]))
    assert [problem.line for problem in jobs.problems] == [2, 3]
    assert [job.request.id for job in jobs.requests] == ["a", "c"]


def test_a_second_job_with_the_same_id_is_a_problem_that_names_both_lines(read: Read) -> None:
    jobs = read("\n".join([line(), line(id="b"), line(), line(id="B")]))
    assert problems(jobs) == [
        "line 3 (id a): id: must be unique, but line 1 has it; choose another",
        "line 4 (id B): id: must be unique, but line 2 has 'b', the same file where case is "
        "ignored; choose another",
    ]
    assert [job.request.id for job in jobs.requests] == ["a", "b"]


def test_a_mistake_in_a_json_list_keeps_what_came_before(read: Read) -> None:
    jobs = read(f"[\n{line()},\n{line(id='b', fps=0)},\n  {{]", "jobs.json")
    assert [problem.line for problem in jobs.problems] == [3, 4]
    assert "column 4" in problems(jobs)[1]
    assert len(jobs.requests) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (f"[{line()}", "Expecting ',' or ']'"),
        (f"[{line()},]", "Expecting value"),
        (f"[{line()}] x", "Extra data"),
        ('{"jobs": []}', "must be a list"),
        ("[", "Expecting value"),
        ("[]", "holds no jobs"),
        (" \n", "holds no jobs"),
    ],
)
def test_a_wrong_json_list_is_a_problem(read: Read, content: str, words: str) -> None:
    assert words in problems(read(content, "jobs.json"))[-1]


@pytest.mark.parametrize("name", ["jobs.jsonl", "jobs.json", "jobs.csv", "jobs"])
def test_an_empty_file_is_a_problem(read: Read, name: str) -> None:
    assert problems(read("", name)) == [
        "line 1: the file holds no jobs; write one job a line, with id, image and prompt"
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a,a.png,p\n", "line 1: a CSV file must start with a header id,image,prompt"),
        ("id,image,prompt\n", "line 1: the file holds no jobs"),
        ("id,image,promt\na,b,c", "line 1: promt: no such field; did you mean 'prompt'?"),
        ("Id,image,prompt\na,b,c", "line 1: Id: no such field; did you mean 'id'?"),
        ("id,image\na,b", "line 1: prompt: required, but there is no such column"),
        ("id,image,prompt,id\na,b,c,d", "line 1: id: must be one column"),
        ("id,image,prompt\na,b", "line 2: must have a cell for each of the 3 columns, got 2"),
        ("id,image,prompt\na,b,c,d", "line 2: must have a cell for each of the 3 columns, got 4"),
        ("id,image,prompt,\na,b,c,d", "line 2: must have a cell for each of the 4 columns"),
        ('id,image,prompt\na,b,"c', "line 2: must be valid CSV"),
        ('id,image,prompt\na,b,"c"d', "line 2: must be valid CSV"),
        ("id,image,prompt\na,b," + "x" * 200_000, "line 2: must be valid CSV, got: field larger"),
        ("id,image,prompt\na,b,", "line 2 (id a): prompt: required, but missing"),
        ("id,image,prompt,seed\na,b,c,1e3", "seed: must be an integer such as 42, got '1e3'"),
        ("id;image;prompt;guidance_scale\na;b;c;6,5", "guidance_scale: must be a number"),
        ("id,image,prompt,guidance_scale\na,b,c,nan", "guidance_scale: must be a number"),
        ("id,image,prompt,allow_untrained_shape\na,b,c,yes", "must be true or false, got 'yes'"),
        ("id,image,prompt,metadata\na,b,c,{", "metadata: must be valid JSON"),
        ("id,image,prompt,metadata\na,b,c,[1]", "metadata: must be an object"),
        ("id,image,prompt,lora\na,b,c,{}", "lora: must be a path or"),
    ],
)
def test_a_wrong_csv_file_is_a_problem(read: Read, content: str, expected: str) -> None:
    jobs = read(content, "jobs.csv")
    (message,) = problems(jobs)
    assert expected in message
    assert jobs.requests == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ((line() + "\n" + line(prompt="X")).replace("X", "caf\xe9").encode("latin-1"), "Latin-1"),
        (line().encode("utf-16"), "UTF-16"),
        (line().encode("utf-16-be"), "UTF-16"),
        (b"\n\n" + line().encode() + b"\0", "line 3: must be UTF-8 text, got a NUL byte"),
    ],
)
@pytest.mark.parametrize("name", ["jobs.jsonl", "jobs.json", "jobs.csv"])
def test_another_encoding_is_a_problem(read: Read, name: str, content: bytes, words: str) -> None:
    (message,) = problems(read(content, name))
    assert words in message
    assert "save the jobs file as UTF-8" in message


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress)])
def test_a_compressed_file_is_read(
    read: Read, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    assert len(read(compress(line().encode()), f"jobs.jsonl.{suffix}").requests) == 1
    assert len(read(compress(b"id,image,prompt\na,b,c"), f"jobs.csv.{suffix}").requests) == 1
    with pytest.raises(RequestError, match="jobs: cannot be read"):
        read(line(), f"jobs.jsonl.{suffix}")


def test_a_missing_file_or_a_folder_is_a_request_error(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="jobs: no such file"):
        read_jobs(str(tmp_path / "gone.jsonl"), CONFIG)
    with pytest.raises(RequestError, match="jobs: must be a file, got the folder"):
        read_jobs(str(tmp_path), CONFIG)
    with pytest.raises(RequestError, match="jobs: cannot be read"):
        read_jobs("nosuch://jobs.jsonl", CONFIG)


def test_a_profile_is_refused_where_the_configuration_has_none(tmp_path: Path) -> None:
    (tmp_path / "jobs.jsonl").write_text(line(mode="optimized"))
    jobs = read_jobs(str(tmp_path / "jobs.jsonl"), Config())
    assert problems(jobs) == [
        "line 1 (id a): profile: the configuration has none, got 'exact'; use mode: baseline"
    ]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("photos/a.jpg", "memory://batch/jobs/photos/a.jpg"),
        ("../photos/a.jpg", "memory://batch/photos/a.jpg"),
        ("/photos/a.jpg", "/photos/a.jpg"),
        ("~/a.jpg", "~/a.jpg"),
        ("https://example.org/a.jpg", "https://example.org/a.jpg"),
    ],
)
def test_addresses_count_from_the_folder_of_the_jobs_file(path: str, expected: str) -> None:
    row = line(image=path, lora={"path": path})
    fsspec.filesystem("memory").pipe("/batch/jobs/jobs.jsonl", row.encode())
    (job,) = read_jobs("memory://batch/jobs/jobs.jsonl", CONFIG).requests
    assert job.request.image == expected
    assert job.request.lora == LoRA(path=expected)


def test_local_addresses_become_absolute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, read: Read
) -> None:
    read(line(image="../a.png", lora="l.safetensors"))
    monkeypatch.chdir(tmp_path)
    for address in ("jobs.jsonl", "./jobs.jsonl", str(tmp_path / "jobs.jsonl")):
        (job,) = read_jobs(address, CONFIG).requests
        assert job.request.image == str(tmp_path / ".." / "a.png")
        assert job.request.lora == LoRA(path=str(tmp_path / "l.safetensors"))
    (job,) = read_jobs(f"file://{tmp_path}/jobs.jsonl", CONFIG).requests
    assert job.request.image == f"file://{tmp_path.parent}/a.png"


def test_a_chained_address_keeps_its_chain(tmp_path: Path, read: Read) -> None:
    read(line(image="b/a.png"))
    address = f"simplecache::file://{tmp_path}/jobs.jsonl"
    (job,) = read_jobs(address, CONFIG).requests
    assert job.request.image == f"simplecache::file://{tmp_path}/b/a.png"


def test_jobs_and_images_are_read_from_s3(s3_bucket: str) -> None:
    picture = io.BytesIO()
    Image.fromarray(np.full((48, 72, 3), 90, np.uint8)).save(picture, "PNG")
    s3 = fsspec.filesystem("s3")
    s3.pipe(f"{s3_bucket}/photos/a.png", picture.getvalue())
    s3.pipe(
        f"{s3_bucket}/jobs/jobs.jsonl.gz", gzip.compress(line(image="../photos/a.png").encode())
    )
    (job,) = read_jobs(f"s3://{s3_bucket}/jobs/jobs.jsonl.gz", CONFIG).requests
    assert job.request.image == f"s3://{s3_bucket}/photos/a.png"
    assert (read_image(job.request.image, height=48, width=72).pixels == 90).all()
    with pytest.raises(RequestError, match="image: no such file"):
        read_image(f"s3://{s3_bucket}/photos/gone.png", height=48, width=72)
    with pytest.raises(RequestError, match="jobs: no such file"):
        read_jobs("s3://no-such-bucket/jobs.jsonl", CONFIG)


CSV = (
    "id,image,prompt,seed,lora,metadata,mode\n"
    'a,a.png,"rain, falls",7,l.safetensors,"{""a"": 1}",baseline\nb,b.png,p,,,,\n'
)
ROWS = line(seed=5, lora={"path": "l", "scale": 0.5}), line(id="b", metadata={"a": [1.5]}, fps=8)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", "\n".join(ROWS)), ("a.json", f"[{', '.join(ROWS)}]"), ("a.csv", CSV)],
)
def test_damaged_files_are_read_or_reported(read: Read, name: str, content: str) -> None:
    rng = np.random.default_rng(0)
    tokens = [b'"', b"{", b"}", b"[", b",", b"\n", b"\r", b"\\", b"\\ud800", b"1e999", b"NaN"]
    tokens += [b"null", b"true", b"-1", b"\xff", b"\0", b";", b"\t", b"::", b"://", b"~", b"\x85"]
    for _ in range(400):
        mutant = bytearray(content.encode())
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(len(mutant)))
            mutant[at : at + int(rng.integers(0, 8))] = tokens[rng.integers(len(tokens))]
        try:
            jobs = read(bytes(mutant), name)
        except VidgenError:
            continue
        assert jobs.requests or jobs.problems
        assert not any("\n" in str(problem) for problem in jobs.problems)


def test_a_problem_prints_what_it_knows() -> None:
    assert str(RowProblem(3, "b", "seed", "must be x")) == "line 3 (id b): seed: must be x"
    assert str(RowProblem(3, None, None, "must be x")) == "line 3: must be x"
