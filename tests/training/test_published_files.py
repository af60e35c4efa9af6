"""torchvision's weights files: from torch's cache, or downloaded from a server on this machine."""

from __future__ import annotations

import hashlib
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from fada_deploy.common.errors import ModelError, UsageError
from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.common.progress import set_progress_factory
from fada_deploy.common.runs import WEIGHTS
from fada_deploy.training.config import RunConfig
from fada_deploy.training.data import run_data
from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel
from fada_deploy.training.run import train
from fada_deploy.training.settings import make_config
from fada_deploy.training.weights import published_files
from fada_deploy.training.weights.checkpoints import load_model, save_weights
from fada_deploy.training.weights.pretrained import find_pretrained

CPU = torch.device("cpu")


class Server(ThreadingHTTPServer):
    """A server of files by name. `length` is the announced size, by default the true one."""

    files: dict[str, bytes]
    requests: list[str]
    length: int | None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/models/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        content = self.server.files.get(self.path.removeprefix("/models/"))
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(self.server.length or len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which torch keeps weights files; it does not exist yet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def server(hub: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Return a running server without files, which the environment names as the mirror."""
    with Server(("127.0.0.1", 0), Handler) as server:
        server.files, server.requests, server.length = {}, [], None
        monkeypatch.setenv("FADA_WEIGHTS_URL", server.url)
        monkeypatch.setenv("no_proxy", "*")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def content(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Return the content of a file of two chunks and a half that stands for ResNet-18's."""
    content = bytes(range(256)) * (10 * 1024)
    declare(monkeypatch, content)
    return content


def declare(monkeypatch: pytest.MonkeyPatch, content: bytes) -> str:
    """Make `content` the published file of ResNet-18 and return its name."""
    name = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setitem(published_files.FILES, "resnet18", name)
    return name


def error_of_search() -> str:
    """Return the message of a search for ResNet-18 that fails, which must be one line."""
    with pytest.raises(ModelError) as caught:
        find_pretrained("resnet18", "imagenet")
    message = str(caught.value)
    assert caught.value.exit_code == 1 and "\n" not in message
    assert "use --init FILE" in message and "--init none" in message
    return message


def files_in(folder: Path) -> list[Path]:
    return list(folder.rglob("*")) if folder.exists() else []


def test_files_are_the_published_ones() -> None:
    assert published_files.FILES == {
        "resnet101": "resnet101-5d3b4d8f.pth",
        "resnet50": "resnet50-0676ba61.pth",
        "resnet18": "resnet18-f37072fd.pth",
        "vgg16": "vgg16-397923af.pth",
    }
    assert published_files.BASE_URL == "https://download.pytorch.org/models"


def test_file_is_downloaded_once(server: Server, hub: Path, content: bytes) -> None:
    name = published_files.FILES["resnet18"]
    server.files[name] = content
    for _ in range(2):
        path = find_pretrained("resnet18", "imagenet")
        assert path == hub / name and path.read_bytes() == content
        assert files_in(hub) == [path]
    assert server.requests == [f"/models/{name}"]


def test_progress_is_reported_in_mebibytes(server: Server, content: bytes) -> None:
    server.files[published_files.FILES["resnet18"]] = content
    calls: list[Any] = []

    class Bar:
        def update(self, n: int = 1) -> None:
            calls.append(n)

        def set_postfix(self, values: Any) -> None:
            raise AssertionError("there are no values")

    def factory(**options: Any) -> Any:
        calls.append((options["total"], options["unit"]))
        return nullcontext(Bar())

    set_progress_factory(factory)
    find_pretrained("resnet18", "imagenet")
    assert calls == [(3, "MiB"), 1, 1, 1]


def test_cached_file_needs_no_network(
    hub: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise AssertionError("no request is needed")

    monkeypatch.setattr(published_files, "urlopen", no_network)
    hub.mkdir(parents=True)
    file = hub / published_files.FILES["resnet18"]
    file.write_bytes(content)
    assert find_pretrained("resnet18", "imagenet") == file


def test_damaged_cached_file_is_replaced(
    server: Server, hub: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    hub.mkdir(parents=True)
    file = hub / published_files.FILES["resnet18"]
    file.write_bytes(b"damaged")
    assert "HTTP status 404" in error_of_search() and file.read_bytes() == b"damaged"
    server.files[file.name] = content
    assert find_pretrained("resnet18", "imagenet") == file and file.read_bytes() == content
    assert any(f"{file} is damaged" in message for message in caplog.messages)


def test_wrong_checksum_leaves_no_file(server: Server, hub: Path, content: bytes) -> None:
    name = published_files.FILES["resnet18"]
    server.files[name] = content[::-1]
    message = error_of_search()
    wrong = hashlib.sha256(content[::-1]).hexdigest()[:8]
    expected = hashlib.sha256(content).hexdigest()[:8]
    assert f"{server.url}{name} cannot be downloaded" in message
    assert f"its SHA-256 is {wrong}…, expected {expected}…" in message
    assert files_in(hub) == []


def test_file_that_the_server_does_not_have(server: Server, hub: Path, content: bytes) -> None:
    assert "(HTTP status 404, Not Found)" in error_of_search()
    assert len(server.requests) == 1 and files_in(hub) == []


def test_server_that_refuses_connections(
    hub: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:  # bound but not listening
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("FADA_WEIGHTS_URL", url)
        monkeypatch.setenv("no_proxy", "*")
        message = error_of_search()
    assert f"{url}/{published_files.FILES['resnet18']}" in message
    assert "Connection refused" in message and files_in(hub) == []


def test_server_that_does_not_answer(
    hub: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published_files, "CONNECT_TIMEOUT", 0.2)
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("FADA_WEIGHTS_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        before = set(threading.enumerate())
        assert "(no answer within 0.2 seconds)" in error_of_search()
        connection, _ = silent.accept()
        connection.close()  # ends the abandoned request
    for thread in set(threading.enumerate()) - before:
        thread.join()
    assert files_in(hub) == []


def test_mirror_without_a_scheme(
    hub: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FADA_WEIGHTS_URL", "mirror.example/models")
    assert "unknown url type" in error_of_search() and files_in(hub) == []


def test_mirror_can_be_a_folder(
    hub: Path, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = published_files.FILES["resnet18"]
    (tmp_path / name).write_bytes(content)
    monkeypatch.setenv("FADA_WEIGHTS_URL", tmp_path.as_uri())
    assert find_pretrained("resnet18", "imagenet") == hub / name
    assert (hub / name).read_bytes() == content


def test_connection_that_ends_early_leaves_no_file(
    server: Server, hub: Path, content: bytes
) -> None:
    server.files[published_files.FILES["resnet18"]] = content
    server.length = len(content) + 1000
    message = error_of_search()
    assert f"the connection ended after {len(content)} of {server.length} bytes" in message
    assert files_in(hub) == []


def test_interrupted_download_leaves_no_file(server: Server, hub: Path, content: bytes) -> None:
    server.files[published_files.FILES["resnet18"]] = content
    seen: list[Path] = []

    class Bar:
        def update(self, n: int = 1) -> None:
            seen.extend(files_in(hub))
            raise KeyboardInterrupt

        def set_postfix(self, values: Any) -> None:
            return None

    set_progress_factory(lambda **_: nullcontext(Bar()))
    with pytest.raises(KeyboardInterrupt):
        find_pretrained("resnet18", "imagenet")
    assert len(seen) == 1 and ".partial" in seen[0].name
    assert files_in(hub) == []


def test_cache_that_cannot_be_written_is_named(server: Server, hub: Path, content: bytes) -> None:
    server.files[published_files.FILES["resnet18"]] = content
    hub.parent.parent.mkdir()
    hub.parent.write_text("a file in place of the folder")
    message = error_of_search()
    assert f"{hub.parent}: Not a directory" in message or f"{hub}: Not a directory" in message


def config(blocks: Path, *settings: str, **options: Any) -> RunConfig:
    """Return a tiny run with the published settings otherwise, for ResNet-18."""
    stages = ("source", "adversarial", "distill")
    small = [f"{s}.{k}" for s in stages for k in ("iterations=1", "batch=2")]
    small += ["size=96x64", "src_size=96x64", "distill.size=96x64", "distill.crop=64x64"]
    domains = {"src": str(blocks / "source.toml"), "tgt": str(blocks / "target.toml")}
    return make_config(
        recipe="paper",
        file=None,
        settings=[*small, *settings],
        options={**domains, "backbone": "resnet18", **options},
    )


def network() -> SegmentationModel:
    torch.manual_seed(5)
    return SegmentationModel(ModelSpec("resnet18", CITYSCAPES_19, (64, 96), "batch"))


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """Return a run that has trained its source stage."""
    run = tmp_path / "start"
    model = network()
    provenance = {"version": "0", "stage": "source", "iteration": 1, "config": {}}
    save_weights(run / "source" / WEIGHTS, model.state_dict(), model.spec, provenance)
    return run


def test_run_starts_from_the_downloaded_weights(
    blocks: Path,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "fada_deploy")
    published = network().feature_extractor["backbone"].state_dict()
    torch.save(published, tmp_path / "published.pth")
    content = (tmp_path / "published.pth").read_bytes()
    name = declare(monkeypatch, content)
    server.files[name] = content
    # A published score is compared, since the weights are those of ImageNet.
    settings = ("source.lr=0", "published=36.8")
    train(config(blocks, *settings, stages=("source",)), tmp_path / "run", device=CPU)
    model, provenance = load_model(tmp_path / "run" / "source" / WEIGHTS)
    assert provenance["config"]["init"] == "imagenet" and model.spec.norm == "frozen"
    trained = model.feature_extractor["backbone"].state_dict()
    assert trained and all(torch.equal(trained[n], published[n]) for n in trained)
    assert any(name in m and "ImageNet weights" in m for m in caplog.messages)
    assert not any("random weights" in m for m in caplog.messages)


def test_failed_download_stops_a_run_before_the_data(
    blocks: Path,
    server: Server,
    content: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def open_sources(*_: Any) -> None:
        raise AssertionError("no data may be read")

    monkeypatch.setattr(run_data, "open_sources", open_sources)
    with pytest.raises(ModelError, match="HTTP status 404"):
        train(config(blocks), tmp_path / "run", device=CPU)
    assert not (tmp_path / "run").exists()


def test_settings_are_checked_before_the_download(
    blocks: Path, server: Server, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="input size 100x64"):
        train(config(blocks, "size=100x64"), tmp_path / "run", device=CPU)
    assert server.requests == []


def test_adaptation_of_a_trained_network_needs_no_initial_weights(
    blocks: Path, server: Server, start: Path, tmp_path: Path
) -> None:
    stages = ("adversarial",)
    # The published score is no obstacle: the weights of ImageNet were those of the first run.
    run = config(blocks, "published=46.9", start=str(start), stages=stages)
    train(run, tmp_path / "run", device=CPU)
    assert (tmp_path / "run" / "adversarial" / WEIGHTS).is_file()
    assert server.requests == []


def test_student_of_a_trained_network_needs_initial_weights(
    blocks: Path, server: Server, start: Path, tmp_path: Path
) -> None:
    run = config(blocks, start=str(start), stages=("adversarial", "distill"))
    with pytest.raises(ModelError, match="HTTP status 404"):
        train(run, tmp_path / "run", device=CPU)
