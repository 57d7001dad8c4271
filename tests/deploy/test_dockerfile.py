"""The image: linted, small in what it takes in, and started as the documents say."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
HADOLINT = Path(sys.executable).parent / "hadolint"


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(HADOLINT), "--no-color", str(path)], capture_output=True, text=True, timeout=60
    )


def test_the_dockerfile_is_clean() -> None:
    done = hadolint(ROOT / "Dockerfile")
    assert done.returncode == 0, done.stdout


def test_a_mistake_in_it_is_found(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.replace("USER 1000", "USER root\nRUN cd /tmp"))
    assert hadolint(tmp_path / "Dockerfile").returncode == 1


def test_everything_copied_exists_and_passes_the_ignore_file() -> None:
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    sources = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for source in [part for part in line.split() if not part.startswith("--")][:-1]
    ]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(source.split("/")[0] == each.split("/")[0] for each in allowed), source


def test_it_runs_as_a_person_and_is_watched() -> None:
    assert re.search(r"^USER 1000$", DOCKERFILE, re.MULTILINE)
    assert "/health" in re.search(r"^HEALTHCHECK.*\n.*$", DOCKERFILE, re.MULTILINE)[0]  # type: ignore[index]
    assert 'CMD ["vidgen", "serve", "serve_config.yaml"]' in DOCKERFILE
    for volume in ("/app/outputs", "/app/loras", "/cache"):
        assert f'"{volume}"' in DOCKERFILE


def test_the_image_serves_to_its_network_and_with_keys_alone(tmp_path: Path) -> None:
    """The step of the Dockerfile that changes the config does what it is for."""
    shutil.copy(ROOT / "serve_config.yaml", tmp_path)
    step = re.search(r"^RUN (sed -i .*\n.*serve_config\.yaml)$", DOCKERFILE, re.MULTILINE)
    assert step is not None
    subprocess.run(["bash", "-c", step[1]], cwd=tmp_path, check=True)
    before = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    after = yaml.safe_load((tmp_path / "serve_config.yaml").read_text())
    assert after["http_options"]["host"] == "0.0.0.0"
    (args,) = [app["args"] for app in after["applications"]]
    assert args["lora_folder"] == "loras"  # /app/loras, a volume
    assert "VIDGEN_API_KEYS_FILE=/app/keys.yaml" in DOCKERFILE
    assert not args.get("allow_open_network")
    after["http_options"]["host"] = before["http_options"]["host"]
    assert after == before


@pytest.mark.parametrize("name", ["prometheus.yml", "alerts.yml", "alerts_test.yml"])
def test_promtool_accepts(name: str) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool; on Debian or Ubuntu: apt-get install prometheus")
    verb = {"prometheus.yml": ["check", "config"], "alerts.yml": ["check", "rules"]}
    command = ["promtool", *verb.get(name, ["test", "rules"]), name]
    done = subprocess.run(
        command, cwd=ROOT / "deploy" / "prometheus", capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
