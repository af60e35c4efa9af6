"""Join the outputs of the parts of a source, so that they equal those of one process."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from fractions import Fraction
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from fada_deploy.cluster.output_folder import OutputFolder
from fada_deploy.common.documents import decode_json, encode_json
from fada_deploy.common.errors import DataError
from fada_deploy.common.files import sha256
from fada_deploy.common.video import open_media
from fada_deploy.runtime.distributed.tasks import (
    RESULT,
    JobSource,
    JoinResult,
    JoinTask,
    PartResult,
    part_folder,
    source_folder,
)
from fada_deploy.runtime.sources.video_chunks import ChunkReport
from fada_deploy.runtime.sources.videos import VideoSource, damage_error, frame_name
from fada_deploy.runtime.writers.audio import AudioCopier
from fada_deploy.runtime.writers.encoder import PART_SUFFIX, open_output
from fada_deploy.runtime.writers.options import SaveOptions

_VIDEO_KINDS = ("overlay", "mask-video", "color-video")
# Kinds with a file per frame; the overlay of a folder of images is one.
_FRAME_KINDS = ("mask", "color", "npz", "overlay")
# Written when the parts are joined, before they are removed.
_JOINED = "joined.json"


def join(task: JoinTask, output: OutputFolder, options: SaveOptions) -> JoinResult:
    """Join the parts of a source and remove them.

    The task may be run again after a worker was lost in the middle of it. If the parts do not fit
    together, nothing is written, and the result says why.
    """
    source, folder = task.source, source_folder(task.source)
    if (data := output.read(f"{folder}/{_JOINED}")) is not None:
        result = decode_json(data, JoinResult)
    else:
        parts = [_read_part(output, source, index) for index in range(task.count)]
        if mismatch := _mismatch([part.report for part in parts if part.report is not None]):
            return JoinResult(mismatch=mismatch)
        with tempfile.TemporaryDirectory(prefix="fada-join-") as temporary:
            joiner = _Joiner(source, output, options, parts, Path(temporary))
            try:
                files = joiner.join()
            except PartsDifferError as error:
                return JoinResult(mismatch=str(error))
        result = JoinResult(
            error=_damage(source, parts), files=combined_hashes(files, source.output)
        )
        output.write(f"{folder}/{_JOINED}", encode_json(result))
    for index in range(task.count):
        output.remove(part_folder(source, index))
    return result


def combined_hashes(files: Mapping[str, str], output: str) -> dict[str, str]:
    """Return the hash of each output file, and one for each folder with a file per frame.

    That is the SHA-256 of what `sha256sum *` prints in the folder. `output` is the name of the
    source in output paths, and so that of its folders.
    """
    combined: dict[str, str] = {}
    folders: dict[str, list[tuple[str, str]]] = {}
    for name, digest in files.items():
        folder, _, file = name.rpartition("/")
        kind = name.partition("/")[0]
        if kind in _FRAME_KINDS and f"{folder}/".startswith(f"{kind}/{output}/"):
            folders.setdefault(folder, []).append((file, digest))
        else:
            combined[name] = digest
    for folder, entries in folders.items():
        listing = "".join(f"{digest}  {file}\n" for file, digest in sorted(entries))
        combined[f"{folder}/"] = hashlib.sha256(listing.encode()).hexdigest()
    return combined


def _read_part(output: OutputFolder, source: JobSource, index: int) -> PartResult:
    name = f"{part_folder(source, index)}/{RESULT}"
    if (data := output.read(name)) is None:
        raise DataError(f"{output}/{name}: is missing; another process has removed it")
    return decode_json(data, PartResult)


def _mismatch(reports: Sequence[ChunkReport]) -> str:
    """Return why chunks do not fit together, "" if they do."""
    for number, (chunk, following) in enumerate(pairwise(reports), 1):
        if chunk.next_hash != following.first_hash:
            return f"the first frame of chunk {number + 1} depends on frames before it"
    return ""


def _damage(source: JobSource, parts: Sequence[PartResult]) -> str:
    """Return the line about the damage of a video, as a single process reports it."""
    reports = [part.report for part in parts if part.report is not None]
    if not reports:
        return ""
    end_s = max(Fraction(*report.end_s) for report in reports)
    error = damage_error(
        source.name,
        sum(report.frames for report in reports),
        sum(report.damaged for report in reports),
        end_s,
        Fraction(*reports[0].announced_s),
    )
    return str(error or "")


class PartsDifferError(Exception):
    """The videos of two parts have different sizes or settings."""


class _Joiner:
    """Joins each kind of output of one source."""

    def __init__(
        self,
        source: JobSource,
        output: OutputFolder,
        options: SaveOptions,
        parts: Sequence[PartResult],
        temporary: Path,
    ) -> None:
        self._source, self._output, self._options = source, output, options
        self._parts, self._temporary = parts, temporary
        self._files: dict[str, str] = {}

    def join(self) -> dict[str, str]:
        """Write all final files; return their hashes."""
        # Videos first: they may turn out not to fit together.
        for kind in self._options.kinds:
            if self._source.items is None and kind in _VIDEO_KINDS:
                self._join_videos(kind)
        if "json" in self._options.kinds:
            self._join_documents()
        first_index = 0
        for index, part in enumerate(self._parts):
            self._place_frames(index, part, first_index)
            first_index += part.frames
        return self._files

    def _names(self, kind: str, suffix: str) -> Iterator[str]:
        """Yield the file of each part that has one."""
        name = f"{kind}/{self._source.output}{suffix}"
        for index, part in enumerate(self._parts):
            if name in part.files:
                yield f"{part_folder(self._source, index)}/{name}"

    def _put(self, file: Path, name: str) -> None:
        self._files[name] = sha256(file)
        self._output.put(file, name)

    def _join_videos(self, kind: str) -> None:
        names = list(self._names(kind, PART_SUFFIX))
        if not names:
            return
        audio = None
        if kind == "overlay":
            video = VideoSource(Path(self._source.name))
            video.probe()
            audio = video.audio
        # In the output folder, so that a file of gigabytes is renamed and not copied.
        with self._output.temporary() as folder:
            joined = folder / "joined.mp4"
            join_videos((self._output.get(name, self._temporary) for name in names), joined, audio)
            self._put(joined, f"{kind}/{self._source.output}.mp4")

    def _join_documents(self) -> None:
        names = list(self._names("json", ".json"))
        if not names:
            return
        with self._output.temporary() as folder:
            joined = folder / "joined.json"
            with joined.open("w", encoding="utf-8") as file:
                separator, first_index = "", 0
                for number, name in enumerate(names):
                    header, frames = _read_document(self._output.get(name, self._temporary))
                    if number == 0:
                        file.write(header)
                    for frame in frames:
                        if self._source.items is None:
                            frame |= {"index": first_index, "item": frame_name(first_index)}
                        file.write(f"{separator}\n{json.dumps(frame)}")
                        separator, first_index = ",", first_index + 1
                file.write("\n]}\n")
            self._put(joined, f"json/{self._source.output}.json")

    def _place_frames(self, index: int, part: PartResult, first_index: int) -> None:
        """Give the files of single frames their final names, which have the frame's number."""
        folder = part_folder(self._source, index)
        numbers: dict[str, int] = {}
        # Shorter names first: the number 1000000 follows 999999.
        for name in sorted(part.files, key=lambda name: (len(name), name)):
            digest = part.files[name]
            path, kind = PurePosixPath(name), name.partition("/")[0]
            if path.suffix == PART_SUFFIX or kind == "json":
                continue
            final = name
            if self._source.items is None:
                number = numbers.setdefault(kind, first_index)
                numbers[kind] += 1
                final = str(path.with_name(f"{frame_name(number)}{path.suffix}"))
                self._output.move(f"{folder}/{name}", final)
            self._files[final] = digest


def join_videos(parts: Iterator[Path], joined: Path, audio: Path | None) -> None:
    """Copy the packets of videos one after the other into one MP4 file, with an audio track.

    The parts have the timestamps of the whole video. Raise `PartsDifferError` if a part does not
    follow the previous one, or has another size or other settings of the encoder.
    """
    with ExitStack() as stack:
        container, files = stack.enter_context(open_output(joined))
        writer: _PacketWriter | None = None
        for part in parts:
            with open_media(part) as source:
                track = source.streams.video[0]
                if writer is None:
                    writer = _PacketWriter(container, track, AudioCopier(container, audio, files))
                writer.append(source, track, _decode_times(part))
        if writer is not None:
            writer.end()


class _PacketWriter:
    """Copies packets into a container, and the audio up to their time."""

    def __init__(self, container: Any, track: Any, audio: AudioCopier) -> None:
        self._container, self._audio = container, audio
        self._stream = container.add_stream_from_template(track)
        self._settings = _encoder_settings(track)
        self._last_pts: int | None = None
        self._last_dts: int | None = None

    def append(self, source: Any, track: Any, decode_times: Sequence[int]) -> None:
        """Copy the packets of one part."""
        if _encoder_settings(track) != self._settings:
            raise PartsDifferError("the size of the video changes")
        packets = (packet for packet in source.demux(track) if packet.size)
        for number, (packet, dts) in enumerate(zip(packets, decode_times, strict=True)):
            if number == 0 and self._last_pts is not None and packet.pts <= self._last_pts:
                raise PartsDifferError("its timestamps repeat")
            # The first times of decoding are before the first frame of the part. Made larger, they
            # stay before the times of display, which are larger than all of the previous part.
            packet.dts = dts if self._last_dts is None else max(dts, self._last_dts + 1)
            self._last_dts = packet.dts
            self._last_pts = max(packet.pts, self._last_pts or packet.pts)
            self._audio.copy_until(float(packet.pts * track.time_base))
            packet.stream = self._stream
            self._container.mux(packet)

    def end(self) -> None:
        """Copy the rest of the audio."""
        self._audio.copy_until(float("inf"))


def _decode_times(part: Path) -> list[int]:
    """Return when each packet is decoded, which NUT does not store.

    That is the time of display of an earlier frame, as many frames before as are reordered.
    """
    with open_media(part) as source:
        times = [
            p.pts for p in source.demux(source.streams.video[0]) if p.size and p.pts is not None
        ]
    in_order = sorted(times)
    position = {pts: index for index, pts in enumerate(in_order)}
    delay = max((index - position[pts] for index, pts in enumerate(times)), default=0)
    before = [in_order[0] - number for number in range(delay, 0, -1)]
    return [*before, *in_order][: len(times)]


def _encoder_settings(track: Any) -> tuple[Any, ...]:
    context = track.codec_context
    return context.extradata, context.width, context.height, track.time_base


def _read_document(path: Path) -> tuple[str, Iterator[dict[str, Any]]]:
    """Return the first line of a document of `json_document`, and its frames."""
    with path.open(encoding="utf-8") as file:
        header = file.readline().rstrip("\n")
    return header, _read_frames(path)


def _read_frames(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        next(file)
        for line in file:
            if line.startswith("{"):
                yield json.loads(line.rstrip(",\n"))
