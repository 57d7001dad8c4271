"""Files are written whole, and a missing file is explained."""

from pathlib import Path

import pytest

from vidgen_ray.addresses import atomic_path, read_address
from vidgen_ray.datasets.metadata import read_metadata
from vidgen_ray.errors import DatasetError, RequestError


def test_a_file_exists_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new/folder/summary.json"

    def write_half() -> None:
        with atomic_path(target) as path:
            path.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_half()
    assert list(target.parent.iterdir()) == []
    with atomic_path(target) as path:
        assert path.suffix == ".json"
        path.write_text("whole")
        assert not target.exists()
    assert [file.name for file in target.parent.iterdir()] == ["summary.json"]
    assert target.read_text() == "whole"


def test_a_staging_folder_holds_the_unfinished_file(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "out/a.mp4", tmp_path / "staging") as path:
        path.write_bytes(b"x")
        assert path.parent == tmp_path / "staging"
    assert (tmp_path / "out/a.mp4").read_bytes() == b"x"


def test_in_a_ray_job_a_missing_file_is_explained_by_gitignore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    for address in ("outputs/photo.jpg", str(folder / "outputs/photo.jpg")):
        with pytest.raises(RequestError, match=r"image: no such file: .*files that \.gitignore"):
            read_address(address, field="image", max_bytes=9)
    with pytest.raises(DatasetError, match=r"metadata: no such file: .*\.gitignore"):
        list(read_metadata("outputs/metadata.jsonl"))
    with pytest.raises(RequestError) as caught:
        read_address("/elsewhere/photo.jpg", field="image", max_bytes=9)
    assert ".gitignore" not in str(caught.value)
