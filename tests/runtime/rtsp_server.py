"""A small RTSP 1.0 server for tests: H.264 over interleaved TCP (RFC 2326, RFC 6184), and failures.

Each connection has its own thread. An image is a list of NAL units; a NAL unit larger than a packet
is sent in fragments (FU-A).
"""

from __future__ import annotations

import base64
import socket
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from types import TracebackType
from typing import Self

import av
import numpy as np

CLOCK = 90_000
_PAYLOAD_TYPE = 96
# Bytes of a NAL unit in one packet; small, so that the images of the tests need several.
_PACKET_BYTES = 400
_SPS, _PPS, _FU_A = 7, 8, 28
_SSRC = 0x46414441

# The NAL units of one image, without start codes.
AccessUnit = list[bytes]


def encode(frames: Sequence[np.ndarray], *, rate: int = 25, keyframes: int = 5) -> list[AccessUnit]:
    """Encode RGB frames (H, W, 3) as H.264; parameter sets precede every key frame."""
    context = av.CodecContext.create("libx264", "w")
    context.height, context.width = frames[0].shape[:2]
    context.pix_fmt, context.time_base, context.framerate = (
        "yuv420p",
        Fraction(1, rate),
        Fraction(rate),
    )
    # Without zero latency, the last images of a truncated stream would be lost in the decoder.
    options = {"preset": "ultrafast", "tune": "zerolatency", "crf": "4", "g": str(keyframes)}
    context.options = options | {"x264-params": "repeat-headers=1:annexb=1:threads=1"}
    packets = []
    for index, frame in enumerate(frames):
        image = av.VideoFrame.from_ndarray(frame, format="rgb24")
        image.pts, image.time_base = index, context.time_base
        packets += context.encode(image)
    packets += context.encode(None)
    units = [split(bytes(packet)) for packet in packets]
    assert len(units) == len(frames)
    return units


def split(stream: bytes) -> AccessUnit:
    """Return the NAL units between the start codes of an Annex-B stream."""
    parts = stream.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1")
    return [part for part in parts if part]


def fragments(unit: bytes, size: int = _PACKET_BYTES) -> list[bytes]:
    """Return the RTP payloads of a NAL unit: itself, or FU-A fragments if it exceeds `size`."""
    if len(unit) <= size:
        return [unit]
    indicator, kind, body = unit[0] & 0xE0 | _FU_A, unit[0] & 0x1F, unit[1:]
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    last = len(parts) - 1
    return [
        bytes([indicator, kind | (0x80 if i == 0 else 0) | (0x40 if i == last else 0)]) + part
        for i, part in enumerate(parts)
    ]


@dataclass
class Play:
    """What one connection delivers.

    Attributes:
        units: The images.
        rate: Images per second.
        drop: Afterwards, close the connection in the middle of a packet.
        hold: Afterwards, send nothing and keep the connection open.
        status: Status of the response to DESCRIBE.
        seconds: Length of the video in the SDP; None for a live stream.
    """

    units: list[AccessUnit] = field(default_factory=list)
    rate: float = 100.0
    drop: bool = False
    hold: bool = False
    status: str = "200 OK"
    seconds: float | None = None


class RtspServer:
    """Serves one `Play` per connection, repeating the last one; `methods` lists the requests."""

    def __init__(self, plays: Sequence[Play], host: str = "127.0.0.1") -> None:
        self.methods: list[str] = []
        self._plays = list(plays)
        self._socket = socket.create_server((host, 0))
        self._closed = threading.Event()
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self.address = f"rtsp://{host}:{self._socket.getsockname()[1]}/video"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections and accept no more."""
        self._closed.set()
        with suppress(OSError):
            # `close` alone does not wake up the thread that waits for connections.
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for connection in self._connections:
            _shut_down(connection)
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            play = self._plays.pop(0) if len(self._plays) > 1 else self._plays[0]
            self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection, play), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket, play: Play) -> None:
        with connection, suppress(OSError, EOFError):
            _Conversation(connection, play, self.methods, self._closed).run()
        _shut_down(connection)


class _Conversation:
    """One client: one thread answers requests, another one sends images."""

    def __init__(
        self, connection: socket.socket, play: Play, methods: list[str], closed: threading.Event
    ) -> None:
        self._socket, self._play, self._methods = connection, play, methods
        self._closed = closed
        self._file = connection.makefile("rb")
        self._sending = threading.Lock()
        self._finished = threading.Event()
        self._sender: threading.Thread | None = None

    def run(self) -> None:
        try:
            while request := self._request():
                if not self._answer(*request):
                    return
        finally:
            self._finished.set()
            self._file.close()
            if self._sender is not None:
                _shut_down(self._socket)
                self._sender.join(10)

    def _request(self) -> tuple[str, str, dict[str, str]] | None:
        """Return (method, address, headers), None at the end; RTCP packets are skipped."""
        while (first := self._file.read(1)) == b"$":
            _, size = struct.unpack(">BH", self._file.read(3))
            self._file.read(size)
        line = first + self._file.readline()
        if not line.strip():
            return None
        method, address, _ = line.decode().split()
        headers = {}
        while header := self._file.readline().strip():
            name, _, value = header.decode().partition(":")
            headers[name.lower()] = value.strip()
        self._file.read(int(headers.get("content-length", 0)))
        return method, address, headers

    def _answer(self, method: str, address: str, headers: dict[str, str]) -> bool:
        """Answer a request; return whether the connection stays open."""
        self._methods.append(method)
        status, extra, body = "200 OK", {"Session": "4661;timeout=60"}, b""
        if method == "OPTIONS":
            extra = {"Public": "OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER"}
        elif method == "DESCRIBE":
            status, body = (
                self._play.status,
                self._description() if self._play.status == "200 OK" else b"",
            )
            extra = {"Content-Base": f"{address}/", "Content-Type": "application/sdp"}
        elif method == "SETUP" and "interleaved" in headers.get("transport", ""):
            extra["Transport"] = f"RTP/AVP/TCP;unicast;interleaved=0-1;ssrc={_SSRC:08X}"
        elif method == "SETUP":
            status = "461 Unsupported Transport"
        elif method == "PLAY":
            extra |= {
                "Range": "npt=0.000-",
                "RTP-Info": f"url={address.rstrip('/')}/track1;seq=0;rtptime=0",
            }
        elif method not in ("TEARDOWN", "GET_PARAMETER"):
            status = "501 Not Implemented"
        extra |= {"CSeq": headers.get("cseq", "0"), "Content-Length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in extra.items())
        with self._sending:
            self._socket.sendall(f"RTSP/1.0 {status}\r\n{head}\r\n".encode() + body)
        if method == "PLAY" and self._sender is None:
            self._sender = threading.Thread(target=self._send, daemon=True)
            self._sender.start()
        return method != "TEARDOWN"

    def _description(self) -> bytes:
        units = [unit for image in self._play.units for unit in image]
        sps = next(unit for unit in units if unit[0] & 0x1F == _SPS)
        pps = next(unit for unit in units if unit[0] & 0x1F == _PPS)
        sets = ",".join(base64.b64encode(each).decode() for each in (sps, pps))
        until = "" if self._play.seconds is None else f"{self._play.seconds:.3f}"
        lines = [
            "v=0",
            "o=- 1 1 IN IP4 127.0.0.1",
            "s=test",
            "c=IN IP4 0.0.0.0",
            "t=0 0",
            "a=control:*",
            f"a=range:npt={'0' if until else 'now'}-{until}",
            f"m=video 0 RTP/AVP {_PAYLOAD_TYPE}",
            f"a=rtpmap:{_PAYLOAD_TYPE} H264/{CLOCK}",
            f"a=fmtp:{_PAYLOAD_TYPE} packetization-mode=1;profile-level-id={sps[1:4].hex()};"
            f"sprop-parameter-sets={sets}",
            "a=control:track1",
        ]
        return "".join(f"{line}\r\n" for line in lines).encode()

    def _send(self) -> None:
        """Send the images at their rate, then end as the play specifies."""
        number, start = 0, time.monotonic()
        with suppress(OSError):
            for index, image in enumerate(self._play.units):
                self._finished.wait(max(0.0, start + index / self._play.rate - time.monotonic()))
                if self._finished.is_set() or self._closed.is_set():
                    return
                payloads = [part for unit in image for part in fragments(unit)]
                for position, payload in enumerate(payloads):
                    last = position == len(payloads) - 1
                    header = struct.pack(
                        ">BBHII",
                        0x80,
                        _PAYLOAD_TYPE | (0x80 if last else 0),
                        number & 0xFFFF,
                        round(index * CLOCK / self._play.rate) & 0xFFFFFFFF,
                        _SSRC,
                    )
                    number += 1
                    self._send_packet(0, header + payload)
            if self._play.drop:
                with self._sending:
                    self._socket.sendall(b"$\0\4\0" + bytes(100))
            elif self._play.hold:
                self._finished.wait()
            else:
                # RTCP BYE.
                self._send_packet(1, struct.pack(">BBHI", 0x81, 203, 1, _SSRC))
        _shut_down(self._socket)

    def _send_packet(self, channel: int, packet: bytes) -> None:
        with self._sending:
            self._socket.sendall(struct.pack(">cBH", b"$", channel, len(packet)) + packet)


def _shut_down(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
