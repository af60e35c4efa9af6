"""Fixtures that several test modules share: data sets, a trained run, and the `fada` command."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from filelock import FileLock

from fada_deploy.cli import main
from fada_deploy.common.progress import set_progress_factory

# The files that take longest: `make test` gives whole files to its processes in this order, so that
# the last ones are short.
SLOWEST_FILES = (
    "test_commands", "test_compare", "test_distributed", "test_export", "test_killed",
    "test_quantize", "test_to_tensorrt", "test_perception_app", "test_selection", "test_engines",
    "test_infer_ray", "test_convert", "test_run", "test_released", "test_limits",
    "test_self_training", "test_soak", "test_methods_in_two_processes", "test_cluster_passes",
)  # fmt: skip


# Makes a folder of a name by calling a function with its path, and returns a copy.
MadeOnce = Callable[[str, Callable[[Path], object]], Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(SLOWEST_FILES)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
    for item in items:
        if item.get_closest_marker("slow"):
            # Slow tests mostly repeat lines that fast tests cover, and measuring coverage makes
            # them 1.4 times slower.
            item.add_marker("no_cover")


def common_folder(own: Path) -> Path:
    """Return the folder into which pytest-xdist puts the folders of its processes."""
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session", autouse=True)
def shared_exporter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let `make test` export a network only once with the same arguments.

    torch's exporter takes ten seconds, most of them in its own code, and twice as long under the
    line tracer of coverage. It therefore also runs without the tracer. A few lines of the package,
    such as the heads of an export, run nowhere else and count as not covered.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    import onnx
    import torch

    folder = common_folder(tmp_path_factory.getbasetemp())
    export = torch.onnx.export

    def digest(network: torch.nn.Module, *arguments: object) -> str:
        """Return a hash of the modules of a network, of their tensors, and of the call."""
        hashed = hashlib.sha256(repr(arguments).encode())
        for name, module in network.named_modules():
            attributes = {k: v for k, v in vars(module).items() if not k.startswith("_")}
            hashed.update(repr((name, type(module), sorted(attributes.items()))).encode())
        # Buffers that are not saved, such as the input normalization, too.
        tensors = network.state_dict() | dict(network.named_buffers())
        for name, tensor in tensors.items():
            hashed.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
        return hashed.hexdigest()

    def export_once(
        network: torch.nn.Module, inputs: tuple[torch.Tensor], **options: object
    ) -> SimpleNamespace:
        shapes = [(each.shape, each.dtype) for each in inputs]
        path = folder / f"{digest(network, shapes, sorted(options.items()))}.onnx"
        with FileLock(path.with_suffix(".lock")):
            if not path.is_file():
                tracer = sys.gettrace()
                sys.settrace(None)
                try:
                    program = export(network, inputs, **options)
                finally:
                    sys.settrace(tracer)
                onnx.save(program.model_proto, path)
        return SimpleNamespace(model_proto=onnx.load(path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", export_once)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Do not measure coverage in the fixtures of slow tests; `no_cover` is about their calls."""
    plugin = item.config.pluginmanager.get_plugin("_cov")
    controller = getattr(plugin, "cov_controller", None)
    if controller is None or not item.get_closest_marker("slow"):
        return (yield)
    controller.pause()
    try:
        return (yield)
    finally:
        controller.resume()


@pytest.fixture(scope="session", autouse=True)
def no_fsync() -> Iterator[None]:
    """Write files without waiting for the disk; no test survives a power failure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Return a function that makes a folder once for all test processes and returns a copy of it.

    The first process that needs the folder makes it. Each has its own copy, so that a test may
    write into it. Settings in the copy of a run name the folders of the process that made it.
    """
    own = tmp_path_factory.getbasetemp()
    common = common_folder(own)

    def copy_of(name: str, make: Callable[[Path], object]) -> Path:
        made = common / f"made-{name}"
        with FileLock(common / f"made-{name}.lock"):
            if not (made / ".complete").is_file():
                shutil.rmtree(made, ignore_errors=True)
                make(made)
                (made / ".complete").touch()
        return Path(shutil.copytree(made, own / name, ignore=shutil.ignore_patterns(".complete")))

    return copy_of


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a temporary folder that replaces the user's cache folder; nothing is downloaded."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("TORCH_HOME", str(folder / "torch"))
        patch.setenv("FADA_WEIGHTS_URL", (folder / "mirror").as_uri())
        yield folder


@pytest.fixture(autouse=True)
def silent_library() -> Iterator[None]:
    """Undo `cli.console.install` after each test, so that the library is silent in the next one."""
    logger = logging.getLogger("fada_deploy")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
    set_progress_factory(None)


def draw_blocks(rng: np.random.Generator, *, target: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return an RGB image (64, 96, 3) of a road, sky and two boxes, and its trainIds (64, 96).

    Images of the target are darker and noisy.
    """
    labels = np.full((64, 96), 10, np.uint8)
    labels[40:] = 0
    for train_id in (2, 13):
        x, y = int(rng.integers(0, 60)), int(rng.integers(20, 40))
        labels[y : y + 20, x : x + 30] = train_id
    colors = {10: (90, 160, 240), 0: (110, 100, 110), 2: (220, 160, 120), 13: (30, 30, 200)}
    image = np.zeros((64, 96, 3), np.float64)
    for train_id, color in colors.items():
        image[labels == train_id] = color
    if target:
        image = image * 0.6 + rng.normal(0, 12, image.shape)
    return image.clip(0, 255).astype(np.uint8), labels


@pytest.fixture(scope="session")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with small custom data sets, `source.toml` and `target.toml`.

    Each has the splits train and val of 6 frames.
    """
    root = tmp_path_factory.mktemp("blocks")
    rng = np.random.default_rng(0)
    for domain in ("source", "target"):
        lines = []
        for split in ("train", "val"):
            for sub in ("images", "labels"):
                (root / domain / split / sub).mkdir(parents=True)
            for i in range(6):
                image, labels = draw_blocks(rng, target=domain == "target")
                assert cv2.imwrite(
                    str(root / f"{domain}/{split}/images/{i:02d}.png"), image[..., ::-1]
                )
                assert cv2.imwrite(str(root / f"{domain}/{split}/labels/{i:02d}.png"), labels)
            folder = f"{domain}/{split}"
            lines += [
                f"[splits.{split}]\n"
                f'images = "{folder}/images/*.png"\nlabels = "{folder}/labels/{{stem}}.png"\n'
            ]
        (root / f"{domain}.toml").write_text("".join(lines))
    return root


@pytest.fixture(scope="session")
def streets(made_once: MadeOnce) -> Path:
    """Return a folder with rendered streets of 192×128: gta5/, cityscapes/ and clip/."""
    from fada_deploy.synth.clip import write_clip
    from fada_deploy.synth.dataset import write_source, write_target

    def render(root: Path) -> None:
        size_hw = (128, 192)
        write_source(root / "gta5", 64, size_hw=size_hw)
        write_target(root / "cityscapes", "train", 16, size_hw=size_hw)
        write_target(root / "cityscapes", "val", 6, size_hw=size_hw)
        write_clip(root / "clip", 0.4, size_hw=size_hw)

    return made_once("streets", render)


@pytest.fixture(scope="session")
def trained(streets: Path, made_once: MadeOnce) -> Path:
    """Return a run whose source stage has learned the classes of the rendered streets."""
    import torch

    from fada_deploy.training.run import train
    from fada_deploy.training.settings import make_config

    settings = [
        "optimizer=adamw",
        "lr=0.003",
        "classifier_lr_factor=1",
        "iterations=120",
        "max_iterations=130",
        "batch=4",
    ]
    config = make_config(
        recipe="paper",
        file=None,
        settings=[f"source.{s}" for s in settings] + ["size=192x128", "src_size=192x128"],
        options={
            "src": "gta5",
            "tgt": "cityscapes",
            "src_root": str(streets / "gta5"),
            "tgt_root": str(streets / "cityscapes"),
            "backbone": "ddrnet23-slim",
            "init": "none",
            "stages": ("source",),
        },
    )
    return made_once("trained", lambda run: train(config, run, device=torch.device("cpu")))


def restore_signals() -> None:
    """Restore the default handlers of signals that background shells and `nohup` ignore."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def interruptible() -> Callable[[], None]:
    """Return a `preexec_fn` with which a child process can be interrupted by SIGINT and SIGHUP."""
    return restore_signals


@pytest.fixture
def fada(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Return a function: run `fada` in an empty folder, return (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return run


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Start a server with the API of S3, create a bucket, and yield its address."""
    import boto3
    from moto.server import ThreadedMotoServer

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
    client.create_bucket(Bucket="drives")
    yield "s3://drives"
    client.close()
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
