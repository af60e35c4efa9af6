"""Output folders on disk and in an object store, which is a real server with the API of S3."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from fada_deploy.cluster.output_folder import PARTS, OutputFolder
from fada_deploy.common import extras
from fada_deploy.common.errors import DataError, MissingExtraError, UsageError


@pytest.fixture(params=["path", "file", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> OutputFolder:
    if request.param == "s3":
        s3 = request.getfixturevalue("s3")
        return OutputFolder(f"{s3}/{request.node.name}")
    return OutputFolder(tmp_path if request.param == "path" else f"file://{tmp_path}")


def test_files(output: OutputFolder, tmp_path: Path) -> None:
    # As a worker gets it.
    output = pickle.loads(pickle.dumps(output))
    assert output.read("a/b.json") is None
    output.write("a/b.json", b"first")
    output.write("a/b.json", b"second")
    assert output.read("a/b.json") == b"second"
    with output.temporary() as folder:
        (folder / "video.mp4").write_bytes(b"frames")
        output.put(folder / "video.mp4", f"{PARTS}/1/video.mp4")
    assert not folder.exists()
    output.move(f"{PARTS}/1/video.mp4", "overlay/video.mp4")
    output.move(f"{PARTS}/1/video.mp4", "overlay/video.mp4")  # was done before
    (tmp_path / "copies").mkdir()
    assert output.get("overlay/video.mp4", tmp_path / "copies").read_bytes() == b"frames"
    output.write(f"{PARTS}/2/x", b"")
    output.remove(PARTS)
    output.remove(PARTS)
    assert output.read(f"{PARTS}/2/x") is None
    output.remove("a/b.json")
    assert output.read("a/b.json") is None


def test_unknown_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="nothing://bucket"):
        OutputFolder("nothing://bucket")
    monkeypatch.setattr(extras, "_is_installed", lambda package: False)
    with pytest.raises(MissingExtraError, match="pip install gcsfs"):
        OutputFolder("gs://bucket/folder")


def test_files_that_cannot_be_written(tmp_path: Path, s3: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        OutputFolder(tmp_path).write("file/name", b"")
    with pytest.raises(DataError, match=r"no-such-bucket.*cannot be written"):
        OutputFolder("s3://no-such-bucket/folder").write("name", b"")
    with pytest.raises(DataError, match="cannot be read"):
        OutputFolder(tmp_path).read("file/name")
