"""Output folders on disk and in an object store, which is a real server with the API of S3."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from fada_deploy.cluster.output_folder import PARTS, OutputFolder
from fada_deploy.common import extras
from fada_deploy.common.errors import DataError, MissingExtraError, UsageError

BUCKET = "drives"


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """Start a server, create a bucket, and yield the address of a folder in it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    yield f"s3://{BUCKET}/labels"
    client.close()
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(params=["path", "file", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> OutputFolder:
    if request.param == "s3":
        store = request.getfixturevalue("store")
        return OutputFolder(f"{store}/{request.node.name}")
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


def test_files_that_cannot_be_written(tmp_path: Path, store: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        OutputFolder(tmp_path).write("file/name", b"")
    with pytest.raises(DataError, match=r"no-such-bucket.*cannot be written"):
        OutputFolder("s3://no-such-bucket/folder").write("name", b"")
    with pytest.raises(DataError, match="cannot be read"):
        OutputFolder(tmp_path).read("file/name")
