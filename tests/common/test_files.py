"""Atomic writes, locks, the cache folder, and how runs and models are chosen by age."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fada_deploy.common import files
from fada_deploy.common.errors import ModelError, UsageError
from fada_deploy.common.files import (
    LOCK,
    atomic_path,
    cache_folder,
    lock,
    numbered_dir,
    remove_partial,
    write_text,
)
from fada_deploy.common.runs import final_weights, newest_models, newest_run
from fada_deploy.common.sizes import parse_size


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "sub" / "a.json"
    write_text(file, "old")
    with pytest.raises(OSError, match=re.escape(str(file))), atomic_path(file):
        # As a write to an open file on a full disk, which names no file.
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(RuntimeError), atomic_path(file) as temporary:
        temporary.write_text("half")
        assert temporary.suffix == ".json"
        raise RuntimeError
    assert file.read_text() == "old" and [p.name for p in file.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    "name",
    [
        "a" * 251 + ".png",
        "é" * 125 + ".png",
        "a" * 255,
        "b." + "c" * 253,
        "a" * 60 + ".safetensors",
    ],
)
def test_long_final_name_fits_as_temporary_name(tmp_path: Path, name: str) -> None:
    final = tmp_path / name
    other = tmp_path / (name[:20] + "x" + name[21:])
    with atomic_path(final) as temporary, atomic_path(other) as second:
        assert temporary != second
        assert len(os.fsencode(temporary.name)) <= max(64, len(os.fsencode(name)))
        assert temporary.match(".*.partial*") and second.match(".*.partial*")
        if 0 < len(final.suffix) < 20:
            assert temporary.suffix == final.suffix
        for path in (temporary, second):
            path.write_text("x")
    assert final.read_text() == "x" and {p.name for p in tmp_path.iterdir()} == {name, other.name}


def test_temporary_files_are_removed_after_a_day(tmp_path: Path) -> None:
    old, new = tmp_path / ".a.1-0a1b2c.partial.onnx", tmp_path / ".b.1-0a1b2c.partial.reference.npz"
    for path in (old, new, tmp_path / "model.onnx"):
        path.touch()
    os.utime(old, (0, 0))
    os.utime(tmp_path / "model.onnx", (0, 0))
    files.remove_old_partial(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {new.name, "model.onnx"}


def test_threads_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    final, texts = tmp_path / "a.json", [str(number) * 100_000 for number in range(4)]

    def write(text: str) -> None:
        for _ in range(50):
            write_text(final, text)
            assert final.read_text() in texts

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, texts))
    assert list(tmp_path.iterdir()) == [final]


def test_files_are_flushed_before_they_are_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[bool] = []
    final = tmp_path / "a.json"
    monkeypatch.setattr(os, "fsync", lambda _: flushed.append(final.exists()))
    write_text(final, "{}")
    assert flushed == [False] and final.exists()


def test_partial_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    for name in (".a.12.partial.onnx", "a.onnx", ".hidden"):
        (tmp_path / name).touch()
    remove_partial(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"a.onnx", ".hidden"}


def test_lock_refuses_another_process_until_it_ends(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom fada_deploy.common.files import lock\n"
        "with lock(pathlib.Path(sys.argv[1])):\n    print('locked', flush=True)\n    input()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        with pytest.raises(UsageError, match=r"run: another process"), lock(tmp_path / "run"):
            pass
        process.kill()
    with lock(tmp_path / "run"), pytest.raises(UsageError), lock(tmp_path / "run"):
        pass
    assert not (tmp_path / "run" / LOCK).exists()


def test_no_module_needs_fcntl() -> None:
    check = (
        "import sys; sys.modules['fcntl'] = None; import fada_deploy.common.files as f; "
        "import fada_deploy.cli"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_cache_folder_follows_xdg_and_the_platform(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache" / "fada_deploy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder().is_relative_to(tmp_path) and cache_folder().name == "fada_deploy"
    monkeypatch.setattr(files, "user_cache_path", lambda *_, **__: Path("~/.cache/fada_deploy"))
    with pytest.raises(OSError, match="no home folder"):
        cache_folder()


def test_numbered_folders_count_up_from_the_highest(tmp_path: Path) -> None:
    names = [numbered_dir(tmp_path, "run").name for _ in range(2)]
    (tmp_path / "run-017").mkdir()
    (tmp_path / "run-old").mkdir()
    assert [*names, numbered_dir(tmp_path, "run").name] == ["run-001", "run-002", "run-018"]


def touch(path: Path, age: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_newest_run_is_the_one_finished_last(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for name, age in (("a", 5), ("b", 50)):
        touch(tmp_path / name / "config.json", 200)
        touch(tmp_path / name / "source" / "weights.safetensors", 100)
        touch(tmp_path / name / "adversarial" / "weights.safetensors", age)
    touch(tmp_path / "unfinished" / "config.json", 0)
    touch(tmp_path / "stray" / "source" / "weights.safetensors", 0)
    run = newest_run(tmp_path)
    assert run.name == "a" and len(caplog.messages) == 2
    assert "unfinished" in caplog.messages[0] and "fada train --resume" in caplog.messages[0]
    assert str(run) in caplog.messages[1]
    with pytest.raises(ModelError, match=r"no run .*nowhere.*fada train"):
        newest_run(tmp_path / "nowhere")


def test_models_are_listed_newest_first_without_partial_files(tmp_path: Path) -> None:
    old = touch(tmp_path / "a" / "export" / "model.onnx", 50)
    new = touch(tmp_path / "b" / "export" / "wide.onnx", 5)
    touch(tmp_path / "b" / "export" / ".wide.partial.onnx", 0)
    touch(tmp_path / "b" / "export" / "wide.reference.npz", 0)
    assert newest_models(tmp_path) == [new, old]


def test_final_weights_are_those_of_the_last_finished_stage(tmp_path: Path) -> None:
    source = touch(tmp_path / "source" / "weights.safetensors", 0)
    assert final_weights(tmp_path) == source
    distilled = touch(tmp_path / "distill" / "weights.safetensors", 100)
    assert final_weights(tmp_path) == distilled
    assert final_weights(tmp_path / "source") == source == final_weights(source)
    with pytest.raises(ModelError, match="no such run"):
        final_weights(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="no finished stage"):
        final_weights(tmp_path / "empty")


def test_size_is_width_by_height() -> None:
    assert parse_size("1024x512") == (512, 1024) == parse_size("1024X512")
    for text in ("1024", "x", "0x5", "axb"):
        with pytest.raises(ValueError, match=r".+"):
            parse_size(text)


def test_temporary_files_of_an_export_are_kept(tmp_path: Path) -> None:
    for folder in ("source", "export"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / ".model.1.partial.onnx").write_bytes(b"x")
    remove_partial(tmp_path, except_in="export")
    assert [path.parent.name for path in tmp_path.rglob("*.onnx")] == ["export"]


def test_temporary_files_of_one_file_whatever_the_number_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long name is shortened, the more the longer that number is."""
    for final in (tmp_path / f"{'x' * 240}.mp4", tmp_path / "short.mp4"):
        made = set()
        for process in (7, 123_456):
            monkeypatch.setattr(os, "getpid", lambda process=process: process)
            path = tmp_path / files._temporary_name(final)
            path.write_bytes(b"x")
            made.add(path)
        assert set(files.partial_files(tmp_path, final)) == made
    assert files.partial_files(tmp_path, tmp_path / "other.mp4") == []
