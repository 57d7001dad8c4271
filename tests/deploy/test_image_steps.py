"""The Dockerfile's steps, run in a clean root of Debian's: what the image holds works.

There is no container engine in it: FROM is a fresh Debian instead of CUDA's Ubuntu, COPY is a copy
of what .dockerignore lets pass. No GPU driver is looked at.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("/etc/pip.conf", "/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("mmdebstrap") is None,
        reason="needs root and mmdebstrap; on Debian or Ubuntu: apt-get install mmdebstrap",
    ),
]


class Image:
    """A root directory, and the state that a Dockerfile's instructions change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        self.workdir = "/"
        self.user = "0"

    def run(self, command: str, timeout_s: float = 3000) -> subprocess.CompletedProcess[str]:
        inside = f"cd {self.workdir}; {command}"
        person = [f"--userspec={self.user}"] if self.user != "0" else []
        return subprocess.run(
            ["chroot", *person, str(self.folder), "/bin/bash", "-euo", "pipefail", "-c", inside],
            env={"HOME": "/home/vidgen" if person else "/root", **self.environment},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def copy(self, sources: list[str], target: str, origin: Path, owner: str | None) -> None:
        place = self.folder / target.lstrip("/")
        if not target.startswith("/"):
            place = self.folder / self.workdir.lstrip("/") / target
        for source in sources:
            path = origin / source.lstrip("/")
            to = place / path.name if len(sources) > 1 or target.endswith("/") else place
            to.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                # Gigabytes of another stage are linked; what comes from here may be changed there.
                copy = os.link if origin != ROOT else shutil.copy2
                shutil.copytree(path, to, symlinks=True, copy_function=copy, dirs_exist_ok=True)
            else:
                shutil.copy(path, to)
            if owner:
                subprocess.run(
                    [
                        "chroot",
                        self.folder,
                        "chown",
                        "-R",
                        owner,
                        f"/{to.relative_to(self.folder)}",
                    ],
                    check=True,
                )


def instructions() -> Iterator[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word, rest


def build(folder: Path, extras: str) -> Image:
    """Both stages; the last one."""
    base = folder / "base"
    subprocess.run(
        ["mmdebstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", str(base)]
        if not os.environ.get("VIDGEN_DEBIAN_ROOT")
        else ["cp", "-a", os.environ["VIDGEN_DEBIAN_ROOT"], str(base)],
        check=True,
        capture_output=True,
        timeout=900,
    )
    stages: dict[str, Image] = {}
    image = Image(base)
    for word, rest in instructions():
        if word == "FROM":
            name = rest.partition(" AS ")[2] or "last"
            subprocess.run(["cp", "-a", str(base), str(folder / name)], check=True)
            image = stages[name] = Image(folder / name)
            for source in map(Path, SOURCES):  # this machine's way to Debian and PyPI
                if source.exists():
                    shutil.copy(source, image.folder / str(source)[1:])
        elif word == "RUN":
            command = rest.replace("${EXTRAS}", extras)
            done = image.run(command)
            assert done.returncode == 0, (command, done.stdout[-2000:] + done.stderr[-4000:])
        elif word == "COPY":
            words = shlex.split(rest)
            options = dict(each[2:].split("=") for each in words if each.startswith("--"))
            *sources, target = [each for each in words if not each.startswith("--")]
            origin = stages[options["from"]].folder if "from" in options else ROOT
            image.copy(sources, target, origin, options.get("chown"))
        elif word == "WORKDIR":
            image.workdir = rest
            (image.folder / rest[1:]).mkdir(parents=True, exist_ok=True)
        elif word == "ENV":
            for pair in shlex.split(rest):
                name, _, value = pair.partition("=")
                image.environment[name] = value.replace("$PATH", image.environment["PATH"])
        elif word == "USER":
            image.user = rest
        else:
            assert word in {"ARG", "SHELL", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    return image


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    folder = Path(tempfile.mkdtemp(prefix="vidgen-image-"))
    mounts = []
    try:
        built = build(folder, "image")
        for name in ("proc", "dev", "dev/shm"):
            target = built.folder / name
            target.mkdir(exist_ok=True)
            subprocess.run(["mount", "--bind", f"/{name}", str(target)], check=True)
            mounts.append(target)
        yield built
    finally:
        for target in reversed(mounts):
            subprocess.run(["umount", "--lazy", str(target)], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def test_it_is_a_person_with_the_package_on_every_path(image: Image) -> None:
    for shell in ("bash -c", "bash -lc"):  # Docker's, and that of Ray jobs and KubeRay
        show = "import vidgen_ray as v; print(v.__file__)"
        done = image.run(f"{shell} 'id -u; command -v python; python -c \"{show}\"'")
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[:2] == ["1000", "/opt/venv/bin/python"]
        assert "/opt/venv/lib" in done.stdout  # not a folder of the build


def test_versions_are_the_pinned_ones(image: Image) -> None:
    done = image.run("python -m pip list --format json")
    installed = {
        each["name"].lower().replace("_", "-"): each["version"] for each in json.loads(done.stdout)
    }
    pins = dict(
        line.lower().replace("_", "-").split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    wrong = {
        name: (installed[name], pin)
        for name, pin in pins.items()
        if name in installed and installed[name].split("+")[0] != pin
    }
    assert wrong == {}
    assert {"boto3", "google-api-python-client", "psycopg", "s3fs", "nvidia-ml-py"} <= set(
        installed
    )


def test_its_programs_run(image: Image) -> None:
    for command in (
        "vidgen doctor --config nano",
        "ray --version",
        "rsync --version",
        "wget --version",
    ):
        done = image.run(command)
        assert done.returncode == 0, (command, done.stdout + done.stderr)


def test_without_keys_it_refuses_to_serve_and_says_why(image: Image) -> None:
    done = image.run(
        "timeout 240 serve run serve_config.yaml > /tmp/serve.log 2>&1 & "
        "for _ in $(seq 230); do grep -m1 keys.yaml /tmp/serve.log && break; sleep 1; done; "
        "kill $!; wait; cat /tmp/serve.log >&2",
        300,
    )
    assert "api_keys_file: cannot be read: /app/keys.yaml" in done.stdout, done.stderr[-4000:]


def test_every_output_is_writable_and_the_package_is_not(image: Image) -> None:
    done = image.run("touch outputs/x loras/x /cache/huggingface/x && rm outputs/x loras/x")
    assert done.returncode == 0, done.stderr
    assert image.run("touch /opt/venv/x").returncode != 0
