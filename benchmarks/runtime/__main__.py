"""Speed of the runtime: the whole pipeline against the network alone and against other libraries.

`python benchmarks/runtime MODEL… --video VIDEO --parts PART,…`. All measurements use the same cores
(`--cores`) with one thread per core, each in a process of its own, alternating: ours, a peer,
another peer, ours again. Results are medians of `--repeats`; ratios are medians of the ratios
within a turn. Parts:

  end_to_end  the network alone and the pipeline decode → … → H.264 of `runtime.benchmark`, in one
              process
  stages      CPU time of each stage of the pipeline when nothing else runs
  peers       the video to an overlay video by other libraries with the same ONNX file: a plain
              loop, supervision, OpenVINO Model API. They are installed into a virtual environment
              at the first use (benchmarks/peers). Times are from the first frame until the video
              is closed, after the model was loaded and run once. Our overlay also has a legend.
              OpenCV writes MPEG-4, because its wheels cannot write H.264; PyAV uses our encoder
              settings, which is verified in the video
  memory      memory over `--memory-frames` frames
  failures    seconds from a failure in the reader, the network, the drawing or the writer until
              the run has ended
  startup     seconds from the start of `fada infer` until its first frame is written

The files of one network (lite0.onnx, lite0.int8-cpu.onnx) share a table; labels are compared with
those of its first row. Without `--video` a drive is rendered. Upsampling has its own benchmark,
benchmarks/upsample.py. Prints tables and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import end_to_end
import failures
import memory
import peers
import stages
import startup
from clip import clip_info, rendered_clip
from models import group_by_network
from processes import OtherLoad, processor_name
from report import check_targets, plot_peers

from fada_deploy.common.sizes import parse_size
from fada_deploy.common.system import installed_version

PARTS = ("end_to_end", "stages", "peers", "memory", "failures", "startup")
JOBS = {
    "end_to_end": end_to_end.job,
    "stages": stages.job,
    "peers": peers.job,
    "memory": memory.job,
    "failures": failures.job,
}
PACKAGES = ("onnxruntime", "openvino", "numba", "av", "opencv-python-headless", "numpy")
SAMPLED_FRAMES = 5


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/runtime",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "models",
        type=Path,
        nargs="+",
        help="ONNX files; memory, failures and startup use the first",
    )
    parser.add_argument("--video", type=Path, help="video to segment [a rendered drive]")
    parser.add_argument(
        "--video-size", default="960x540", help="WIDTHxHEIGHT of the rendered drive [%(default)s]"
    )
    parser.add_argument("--frames", type=int, help="number of frames of the video [all]")
    parser.add_argument(
        "--parts",
        default="end_to_end,stages,peers",
        help=f"comma-separated, from {', '.join(PARTS)} [%(default)s]",
    )
    parser.add_argument(
        "--memory-frames", type=int, default=10_000, help="frames of the part memory [%(default)s]"
    )
    parser.add_argument(
        "--backend", default="auto", help="our backend, or several: NAME,… [%(default)s]"
    )
    parser.add_argument("--repeats", type=int, default=3, help="[%(default)s]")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="time for the network alone [%(default)s]"
    )
    parser.add_argument("--cores", type=int, default=2, help="number of cores to use [%(default)s]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the JSON to FILE")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="plot the frames per second of the part peers"
    )
    args = parser.parse_args()
    args.parts = [part for part in args.parts.split(",") if part]
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    return args


def describe_run(args: argparse.Namespace, clip: Path, frames: int, cores: int) -> dict[str, Any]:
    """Return the part of the JSON document that describes the machine and the settings."""
    _, width, height = clip_info(clip)
    return {
        "benchmark": "runtime",
        "processor": processor_name(),
        "cores": cores,
        "video": clip.name,
        "video_size": f"{width}x{height}",
        "frames": frames,
        "repeats": args.repeats,
        "encoder": peers.ENCODER,
        "versions": {name: installed_version(name) for name in PACKAGES},
        "load_before": os.getloadavg(),
    }


def run_parts(
    args: argparse.Namespace, common: dict[str, Any], cores: list[int], document: dict[str, Any]
) -> None:
    """Measure the requested parts and add their results to the document."""
    python = peers.peers_python() if "peers" in args.parts else None
    load = OtherLoad(cores)
    if "end_to_end" in args.parts:
        with load.during("end_to_end"):
            document["end_to_end"] = end_to_end.run(args.models, common, args.repeats)
    if "stages" in args.parts:
        document["stages"] = stages.run(args.models, common)
    if python is not None:
        with load.during("peers"):
            document["peers"] = [
                peers.run(files, common, args.repeats, python)
                for files in group_by_network(args.models)
            ]
    if "memory" in args.parts:
        document["memory"] = memory.run(common | {"frames": args.memory_frames})
    if "failures" in args.parts:
        document["failures"] = failures.run(common)
    if "startup" in args.parts:
        with load.during("startup"):
            document["startup"] = startup.run(common)
    document["other_load"] = load.fraction
    document["load_after"] = os.getloadavg()


def main() -> None:
    if sys.argv[1:2] == ["--job"]:
        print(json.dumps(JOBS[sys.argv[2]](json.loads(sys.argv[3]))))
        return
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    args = parse_arguments()
    cores = sorted(os.sched_getaffinity(0))[: args.cores]
    os.sched_setaffinity(0, cores)  # inherited by all measured processes
    clip = args.video or rendered_clip(parse_size(args.video_size))
    count = clip_info(clip).frames
    frames = min(args.frames or count, count)
    backends = args.backend.split(",")
    common = {
        "clip": str(clip),
        "frames": frames,
        "backends": backends,
        "backend": backends[0],
        "sampled_frames": sorted(
            {round(i * (frames - 1) / (SAMPLED_FRAMES - 1)) for i in range(SAMPLED_FRAMES)}
        ),
        "seconds": args.seconds,
        "model": str(args.models[0]),
    }
    document = describe_run(args, clip, frames, len(cores))
    print(
        f"{document['processor']}, {len(cores)} cores; {clip.name}, {document['video_size']}, "
        f"{frames} frames; median of {args.repeats}; load {document['load_before'][0]:.1f}"
    )
    run_parts(args, common, cores, document)
    targets = check_targets(document)
    document["targets"] = targets
    print()
    for target in targets:
        print(
            f"{'met   ' if target.is_met else 'MISSED'}  {target.description}: {target.value:.2f}"
        )
    if args.plot is not None and "peers" in document:
        plot_peers(document, args.plot)
    if args.json is not None:
        args.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
