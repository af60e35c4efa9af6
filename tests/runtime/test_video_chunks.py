"""Chunks of videos: their frames are those of the whole video, in the same order."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import chunk_videos
import numpy as np
import pytest

from fada_deploy.common.errors import DataError
from fada_deploy.runtime.sources.base import Frame
from fada_deploy.runtime.sources.video_chunks import ChunkReport, VideoChunkSource, plan_chunks
from fada_deploy.runtime.sources.videos import VideoSource


def read_whole(path: Path) -> tuple[list[Frame], list[str]]:
    items = list(VideoSource(path).frames())
    errors = [str(item) for item in items if isinstance(item, DataError)]
    return [item for item in items if isinstance(item, Frame)], errors


def read_chunks(path: Path, frames: int) -> tuple[list[Frame], list[ChunkReport]]:
    read: list[Frame] = []
    reports = []
    for chunk in plan_chunks(path, frames):
        source = VideoChunkSource(path, chunk)
        items = list(source.frames())
        assert all(isinstance(item, Frame) for item in items)
        assert len(items) == source.report.frames
        read += [item for item in items if isinstance(item, Frame)]
        reports.append(source.report)
    return read, reports


def assert_equal(frames: list[Frame], expected: list[Frame]) -> None:
    assert [f.pts for f in frames] == [f.pts for f in expected]
    assert [f.time_base for f in frames] == [f.time_base for f in expected]
    for frame, other in zip(frames, expected, strict=True):
        np.testing.assert_array_equal(frame.rgb, other.rgb)


@pytest.mark.parametrize("name", chunk_videos.KINDS)
def test_chunks_are_the_whole_video(name: str, tmp_path: Path) -> None:
    path = chunk_videos.write(tmp_path / name, *chunk_videos.KINDS[name])
    expected, errors = read_whole(path)
    frames, reports = read_chunks(path, 10)
    assert not errors
    assert len(expected) == chunk_videos.FRAMES
    assert len(reports) >= 4
    assert_equal(frames, expected)
    assert [f.index for f in frames] == list(range(len(expected)))
    assert all(a.next_hash == b.first_hash != "" for a, b in pairwise(reports))


@pytest.mark.parametrize("harm", [chunk_videos.damage, chunk_videos.truncate])
@pytest.mark.parametrize("name", ["open-gop.ts", "variable-rate.mkv"])
def test_harmed_videos(name: str, harm: object, tmp_path: Path) -> None:
    path = chunk_videos.write(tmp_path / name, *chunk_videos.KINDS[name])
    assert callable(harm)
    harm(path)
    expected, errors = read_whole(path)
    frames, reports = read_chunks(path, 10)
    assert_equal(frames, expected)
    damaged = sum(report.damaged for report in reports)
    assert (f"{damaged} damaged packet" in "".join(errors)) == (damaged > 0)
    assert all(a.next_hash == b.first_hash for a, b in pairwise(reports))


def test_frames_that_depend_on_earlier_ones_are_detected(tmp_path: Path) -> None:
    path = chunk_videos.write(tmp_path / "a.mp4", *chunk_videos.INTRA_REFRESH, frames=144)
    _, reports = read_chunks(path, 10)
    assert any(a.next_hash != b.first_hash for a, b in pairwise(reports))


def test_videos_that_are_not_divided(tmp_path: Path) -> None:
    """AVI and raw streams have no times of display, and a jump back hides the order."""
    codec, options, *_ = chunk_videos.KINDS["mpeg4.mp4"]
    avi = chunk_videos.write(tmp_path / "a.avi", codec, options, False, False)
    raw = chunk_videos.write(tmp_path / "a.h264", "libx264", {"g": "12", "bf": "0"}, False, False)
    for path in (avi, raw):
        (chunk,) = plan_chunks(path, 5)
        assert chunk.start is chunk.first_pts is chunk.end_pts is None
        assert_equal(read_chunks(path, 5)[0], read_whole(path)[0])


def test_joined_recordings(tmp_path: Path) -> None:
    """Where the timestamps jump back, no chunk begins, because their order says nothing."""
    path = chunk_videos.write(tmp_path / "a.ts", *chunk_videos.KINDS["open-gop.ts"])
    path.write_bytes(path.read_bytes() * 2)
    expected, _ = read_whole(path)
    assert len(expected) > chunk_videos.FRAMES
    assert_equal(read_chunks(path, 10)[0], expected)


def test_short_videos_are_one_chunk(tmp_path: Path) -> None:
    path = chunk_videos.write(tmp_path / "b-frames.mp4", *chunk_videos.KINDS["b-frames.mp4"])
    (chunk,) = plan_chunks(path, 1000)
    assert (chunk.count, chunk.frames, chunk.first_index) == (1, chunk_videos.FRAMES, 0)


def test_unreadable_videos(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"no video")
    with pytest.raises(DataError):
        plan_chunks(path, 10)
