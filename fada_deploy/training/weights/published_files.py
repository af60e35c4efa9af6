"""The files with ImageNet weights that torchvision publishes: from torch's cache, or downloaded.

`torch.hub.download_url_to_file` has no time limit for an unreachable server and shows its own
progress bar, so the download is done here.
"""

from __future__ import annotations

import hashlib
import logging
import os
from concurrent.futures import Future
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import torch

from fada_deploy.common.errors import ModelError, one_line
from fada_deploy.common.files import atomic_path, sha256
from fada_deploy.common.progress import progress_bar

logger = logging.getLogger(__name__)

# Backbone → file. The name ends with the first 8 digits of the SHA-256. The file of ResNet-101 is
# the older one, because the code of the FADA paper uses it.
FILES = {
    "resnet101": "resnet101-5d3b4d8f.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet18": "resnet18-f37072fd.pth",
    "vgg16": "vgg16-397923af.pth",
}
# Where the files are published, and the environment variable with the address of a mirror.
BASE_URL = "https://download.pytorch.org/models"
URL_VARIABLE = "FADA_WEIGHTS_URL"

# Seconds until the server must have answered, and in which each read must get data.
CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 30.0
_CHUNK = 1 << 20


def published_file(backbone: str) -> Path:
    """Return torchvision's file for a key of `FILES`, in torch's cache; download it if necessary.

    Raise `ModelError` if the cache has no intact file and the download fails.
    """
    name = FILES[backbone]
    digest = Path(name).stem.rpartition("-")[2]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file():
        if sha256(path).startswith(digest):
            return path
        logger.warning("%s is damaged (its SHA-256 is not %s…); downloading it again", path, digest)
    url = f"{(os.environ.get(URL_VARIABLE) or BASE_URL).rstrip('/')}/{name}"
    logger.info("downloading %s to %s", url, path.parent)
    try:
        _download(url, path, digest)
    except (OSError, HTTPException, ValueError) as error:
        raise ModelError(
            f"--init imagenet: no intact {name} in {path.parent}, and {url} cannot be downloaded "
            f"({_reason(error)}); use --init FILE with a copy of the file, or --init none (random "
            "weights)"
        ) from None
    return path


def _download(url: str, path: Path, digest: str) -> None:
    """Download a file whose SHA-256 starts with `digest`; raise `OSError` if it is another one."""
    actual = hashlib.sha256()
    with _open(url) as response, atomic_path(path) as temporary:
        # None if the server does not tell the size. A local file (file://) has no `length`.
        size = getattr(response, "length", None)
        total = None if size is None else -(-size // _CHUNK)
        with temporary.open("wb") as handle, progress_bar(total, path.name, unit="MiB") as progress:
            while chunk := response.read(_CHUNK):
                handle.write(chunk)
                actual.update(chunk)
                progress.update()
            received = handle.tell()
        if size is not None and received < size:
            raise OSError(f"the connection ended after {received} of {size} bytes")
        if not actual.hexdigest().startswith(digest):
            raise OSError(f"its SHA-256 is {actual.hexdigest()[:8]}…, expected {digest}…")


def _open(url: str) -> Any:
    """Return the response to a GET request; raise `OSError` if there is none in CONNECT_TIMEOUT.

    The time limit of `urlopen` holds for each address of the server and not for looking up its
    name, so the request is made in a thread that can be abandoned.
    """
    opened: Future[Any] = Future()

    def request() -> None:
        try:
            # The address is that of the publisher, or the mirror that the user named.
            response = urlopen(url, timeout=READ_TIMEOUT)  # noqa: S310
        except Exception as error:
            if opened.set_running_or_notify_cancel():
                opened.set_exception(error)
            return
        if opened.set_running_or_notify_cancel():
            opened.set_result(response)
        else:
            response.close()

    Thread(target=request, daemon=True).start()
    try:
        return opened.result(CONNECT_TIMEOUT)
    except TimeoutError:
        if not opened.cancel():
            return opened.result()
        raise TimeoutError(f"no answer within {CONNECT_TIMEOUT:g} seconds") from None


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        with error:
            return f"HTTP status {error.code}, {error.reason}"
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, OSError) and cause.strerror:
        return f"{cause.filename}: {cause.strerror}" if cause.filename else cause.strerror
    return one_line(cause) if isinstance(cause, Exception) else str(cause)
