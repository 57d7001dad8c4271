"""API keys: hashed at rest, and errors of the keys file that never show a key."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from vidgen_ray.cli import app
from vidgen_ray.errors import ConfigError
from vidgen_ray.serving.http.keys import ApiKeys, KeysFile, new_key, read_keys
from vidgen_ray.serving.queue.webhooks import check_secret


def test_a_key_names_its_owner(tmp_path: Path) -> None:
    keys = {owner: [new_key() for _ in range(2)] for owner in ("desk", "sport")}
    path = tmp_path / "keys.yaml"
    hashes = {owner: [digest for _, digest in pairs] for owner, pairs in keys.items()}
    path.write_text(yaml.safe_dump(hashes))
    known = read_keys(str(path))
    for owner, pairs in keys.items():
        for secret, _ in pairs:
            assert known.owner_of(secret) == owner
            assert secret not in path.read_text()
    for wrong in (None, "", "vg_x", keys["desk"][0][1], "\udc80"):
        assert known.owner_of(wrong) is None


def test_without_keys_everybody_is_the_same_owner() -> None:
    assert not ApiKeys([]).are_needed
    assert read_keys(None).owner_of(None) == ""


def test_the_command_makes_lines_of_a_keys_file(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["key", "desk"])
    assert result.exit_code == 0
    path = tmp_path / "keys.yaml"
    path.write_text(result.stdout)
    secret = result.stderr.split()[0]
    assert read_keys(str(path)).owner_of(secret) == "desk"
    assert secret not in result.stdout


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a",
        "{}",
        "desk: vg_secretsecret",
        "desk: sha256:12",
        "../x: sha256:" + "0" * 64,
        "desk: []",
        "desk:",
        "desk: {a: b}",
    ],
)
def test_a_bad_keys_file_is_an_error_without_the_key(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="api_keys_file") as caught:
        read_keys(str(path))
    assert "secretsecret" not in str(caught.value)


@pytest.mark.parametrize("secret", ["whsec_", "whsec_short", "whsec_c2hvcnQ=", "whsec_" + "!" * 40])
def test_a_weak_webhook_secret_is_refused(secret: str) -> None:
    with pytest.raises(ConfigError, match="webhook_secret"):
        check_secret(secret)


def test_a_second_line_for_an_owner_adds_a_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    keys = [new_key() for _ in range(2)]
    path.write_text("".join(f"desk: {digest}\n" for _, digest in keys))
    known = read_keys(str(path))
    assert [known.owner_of(secret) for secret, _ in keys] == ["desk", "desk"]


def test_a_changed_file_is_reloaded_and_a_broken_one_keeps_the_last_keys(tmp_path: Path) -> None:
    (desk, desk_hash), (sport, sport_hash) = new_key(), new_key()
    path = tmp_path / "keys.yaml"
    path.write_text(f"desk: {desk_hash}\n")
    file = KeysFile(str(path))
    path.write_text(f"sport: {sport_hash}\n")
    file.reload()
    assert (file.keys.owner_of(desk), file.keys.owner_of(sport)) == (None, "sport")
    for broken in ("", "sport: []", "sport: vg_secretsecret"):
        path.write_text(broken)
        file.reload()
        assert file.keys.owner_of(sport) == "sport"
        assert "api_keys_file" in str(file.problem)
        assert "secretsecret" not in str(file.problem)
    path.unlink()
    file.reload()
    assert file.keys.owner_of(sport) == "sport"
    path.write_text(f"desk: {desk_hash}\n")
    file.reload()
    assert (file.problem, file.keys.owner_of(sport), file.keys.owner_of(desk)) == (
        None,
        None,
        "desk",
    )
