"""Train, export and evaluate from Python: the functions behind the commands of the same names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from fada_deploy.common.errors import MissingExtraError, UsageError
from fada_deploy.common.runs import MODEL_SUFFIXES, final_weights, new_run, resolve_builtin

if TYPE_CHECKING:
    from fada_deploy.data.base import FrameDataset
    from fada_deploy.evaluation import Evaluation
    from fada_deploy.export.plan import ExportResult
    from fada_deploy.runtime.segmenter import Segmenter
    from fada_deploy.training.adapt import TargetComparison
    from fada_deploy.training.result import TrainingResult


class TrainOptions(TypedDict, total=False):
    """Settings of a run that `train` accepts by name; each has the default of its recipe.

    Attributes:
        src_root: Folder of a single source [`$FADA_DATASETS/<name>`, otherwise `datasets/<name>`].
        tgt_root: Folder of the target [`$FADA_DATASETS/<name>`, otherwise `datasets/<name>`].
        backbone: Name of the network.
        method: Alignment method: "fada", "fada-hard", "feature", "adaptsegnet", "advent" (both
            also with "-multi"), "minent", "clan", "fcn-wild", "siban", "adaptpatch", "cda",
            "cycada" or "source".
        stages: Stages to train, from "source", "adversarial", "selftrain" and "distill".
        label_space: "cityscapes-19", "-16", "-13", "driving-11", or a TOML file.
        init: File with ImageNet weights, "imagenet" (from an installed package or downloaded), or
            "none".
        start: Run or weights file that replaces the stages that are left out.
        augment: Augmentation in every stage: "none", "light" or "strong".
        style: Style of the source frames: "none", "statistics", "fourier" or "cyclegan".
        size_hw: Input size of all stages as (height, width) or "WIDTHxHEIGHT"; source frames are
            resized to it.
        batch: Images per iteration; per domain in the stages adversarial and selftrain.
        seed: Seed of the initial weights and of the data order.
    """

    src_root: str | Path
    tgt_root: str | Path
    backbone: str
    method: str
    stages: Sequence[str]
    label_space: str
    init: str
    start: str | Path
    augment: str
    style: str
    size_hw: tuple[int, int] | str
    batch: int
    seed: int


def train(
    *,
    src: str | Path | Sequence[str | Path] | None = None,
    tgt: str | Path | None = None,
    recipe: str | None = None,
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    device: str = "auto",
    tensorboard: bool = False,
    cache_gib: float = 0.0,
    cache_folder: str | Path | None = None,
    **options: Unpack[TrainOptions],
) -> TrainingResult:
    """Adapt a network from a labeled source to an unlabeled target, as `fada train` does.

    Messages go to the logger `fada_deploy`. Called in the main thread, SIGINT, SIGTERM and SIGHUP
    save the state, and `resume` continues exactly where the run stopped. On a CPU, PyTorch is set
    to use all cores of this process, unless `OMP_NUM_THREADS` is set.

    Args:
        src: Labeled source: a data set ("gta5", "synthia", "cityscapes"), a TOML file, "rendered",
            or a list of them, which provide equal parts of each batch. The recipe "deploy" adds
            "rendered" to a single source, and uses it alone if there is none.
        tgt: Unlabeled target: the name of a data set, a TOML file, a video, or a folder of videos
            or images.
        recipe: "paper" (the published settings), "deploy" (for real footage and real-time networks)
            or "small" (from random weights on CPUs) [deploy for a real-time backbone, else paper].
        config: TOML file with settings; the other arguments override it.
        settings: Single settings by their dotted name, for example `{"adversarial.lr": 1e-4}`.
            Sizes are (height, width) or "WIDTHxHEIGHT".
        out: Folder of the run [`runs/<src>-<tgt>-<backbone>-NNN`].
        resume: Folder of an unfinished run; all other arguments except `device`, `tensorboard`,
            `cache_gib` and `cache_folder` must be left out.
        device: "auto", "cpu" or "cuda[:N]".
        tensorboard: Also write TensorBoard events to `<run>/tensorboard`.
        cache_gib: Memory for decoded frames in GiB.
        cache_folder: Folder for these frames, in place of memory; later runs use them too.
        options: The fields of `TrainOptions`, for example `backbone="ddrnet23-slim"`.

    Raises:
        UsageError: The arguments do not fit together.
        DataError: The data cannot be used.
        ModelError: The weights or the state of the run cannot be read.
        DeviceError: The device is not available.
        InterruptedRunError: SIGINT (Ctrl-C), SIGTERM or SIGHUP ended the run; its state was saved.
        MissingExtraError: torch is not installed.
        OSError: The folder of the run cannot be created.
    """
    from fada_deploy.data.cache import open_cache

    try:
        from fada_deploy.training.device import choose_device
        from fada_deploy.training.run import train as train_run
        from fada_deploy.training.run_files import load_config
        from fada_deploy.training.settings import make_config
    except ImportError as error:
        raise MissingExtraError(str(error.name), "train") from None

    where = choose_device(device)
    chosen = _run_settings(src, tgt, options) | dict(settings or {})
    if resume is None:
        file = None if config is None else Path(config)
        run_config = make_config(recipe=recipe, file=file, settings=[], options=chosen)
    else:
        names = (("recipe", recipe), ("config", config), ("out", out))
        given = [*chosen, *(name for name, value in names if value)]
        if given:
            raise UsageError(
                f"resume continues a run with its own settings; leave out {', '.join(given)}"
            )
        run_config = load_config(Path(resume))
    cache = open_cache(cache_gib, None if cache_folder is None else Path(cache_folder))
    if resume is None:
        folder = None if out is None else Path(out)
        run = new_run(run_config.source_name, run_config.tgt, run_config.backbone, folder)
    else:
        run = Path(resume)
    return train_run(run_config, run, device=where, tensorboard=tensorboard, cache=cache)


def adapt(
    model: str | Path,
    *,
    tgt: str | Path,
    source_free: bool = False,
    iterations: int | None = None,
    start_weight: float | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    cache_gib: float = 0.0,
    cache_folder: str | Path | None = None,
) -> tuple[TrainingResult, list[TargetComparison]]:
    """Adapt a trained network to a new target, as `fada adapt` does.

    Return the result of the new run, and the comparisons of the networks before and after on the
    new and on the old target.

    Args:
        model: "builtin", a run, a stage of a run, or a weights file.
        tgt: New unlabeled target: the name of a data set, a TOML file, a video, or a folder of
            videos or images.
        source_free: Learn from the new target alone.
        iterations: Number of training iterations [that of the stage selftrain of the model].
        start_weight: Weight of `model`, 0 to 1, in the average of the networks before and after the
            training, which is the result [0.5]. More of it forgets less of the old target.
        settings: Single settings by their dotted name, for example `{"selftrain.lr": 1e-4}`.
        out: Folder of the new run [`runs/<src>-<tgt>-<backbone>-NNN`]. A run that was interrupted
            there is continued.
        device: "auto", "cpu" or "cuda[:N]".
        cache_gib: Memory for decoded frames in GiB.
        cache_folder: Folder for these frames, in place of memory; later runs use them too.

    Raises:
        ModelError: The model cannot be read, or does not contain its settings.
        UsageError: The arguments do not fit together.
        DataError: The data cannot be used.
        DeviceError: The device is not available.
        InterruptedRunError: A signal ended the run; its state was saved.
        MissingExtraError: torch is not installed.
        OSError: The folder of the run cannot be created.
    """
    from fada_deploy.data.cache import open_cache

    try:
        from fada_deploy.training.adapt import (
            adaptation_config,
            adaptation_folder,
            compare_targets,
        )
        from fada_deploy.training.device import choose_device
        from fada_deploy.training.run import train as train_run
    except ImportError as error:
        raise MissingExtraError(str(error.name), "train") from None

    where = choose_device(device)
    config = adaptation_config(
        Path(model), tgt=str(tgt), source_free=source_free, iterations=iterations,
        start_weight=start_weight, options=settings,
    )  # fmt: skip
    cache = open_cache(cache_gib, None if cache_folder is None else Path(cache_folder))
    run = adaptation_folder(config, None if out is None else Path(out))
    result = train_run(config, run, device=where, cache=cache)
    return result, compare_targets(run, config, where)


def _run_settings(
    src: str | Path | Sequence[str | Path] | None, tgt: str | Path | None, options: TrainOptions
) -> dict[str, Any]:
    """Return the settings that the arguments of `train` stand for."""
    from fada_deploy.training.settings import shared_options, stage_names

    unknown = options.keys() - TrainOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"train() got unexpected keyword arguments: {', '.join(sorted(unknown))}")
    sources = [src] if src is None or isinstance(src, str | Path) else list(src)
    if not sources:
        raise UsageError("src is empty; name a source, or leave it out")
    first, *extra = sources
    if extra and "src_root" in options:
        raise UsageError("src_root applies to a single source; use a TOML file for each source")
    values: dict[str, Any] = {"src": first, "tgt": tgt, **options}
    shared = shared_options(batch=values.pop("batch", None), size=values.pop("size_hw", None))
    if "stages" in options:
        values["stages"] = stage_names(options["stages"])
    if extra:
        values["extra_sources"] = [{"name": str(source)} for source in extra]
    values |= shared
    return {name: _text(value) for name, value in values.items() if value is not None}


def export(source: str | Path, **options: Any) -> ExportResult:
    """Export a run to ONNX files and engines, as `fada export` does.

    Each file is compared with the trained network on real frames before it is saved under its
    final name.

    Args:
        source: Folder of a run or of a stage, a weights file, or an ONNX file of an earlier export.
        options: The fields of `fada_deploy.export.options.ExportOptions`, for example
            `precisions=("fp32", "int8")`.

    Returns:
        The paths of the files and how each backend compared.

    Raises:
        ToleranceError: The outputs of the fp32 file differ too much from those of the network.
        RefusedFilesError: Those of other files do. It is a `ToleranceError` whose `result`
            describes the files that were written.
        ModelError: `source` does not exist or cannot be exported.
        DataError: There are no frames to verify or calibrate with.
        UsageError: The options do not fit together.
        MissingExtraError: A package is not installed.
        OSError: A folder cannot be created.
    """
    from fada_deploy.export.plan import ExportOptions, run_export

    return run_export(Path(source), ExportOptions(**options))


def evaluate(
    model: Segmenter | str | Path,
    data: FrameDataset | str | Path,
    *,
    data_root: str | Path | None = None,
    split: str = "val",
    device: str = "auto",
    backend: str = "auto",
) -> Evaluation:
    """Compute the per-class IoU of a model on a labeled data set, as `fada eval` does.

    Predictions are made at each frame's own size; labels are never resized.

    Args:
        model: An open `Segmenter`, an exported file, or a run (which needs torch).
        data: The name of a data set, a TOML file, or an open data set.
        data_root: Folder of the data set [`$FADA_DATASETS/<name>`, otherwise `datasets/<name>`].
        split: Split of the data set.
        device: "auto", "cpu" or "cuda[:N]".
        backend: Backend of an exported file.

    Raises:
        DataError: The data set has no labels, or no frame can be read.
        ModelError: The model cannot be opened.
        DeviceError: The device is not available.
        UsageError: The arguments do not fit together.
        MissingExtraError: torch is not installed, which a run needs.
    """
    from fada_deploy.data import open_dataset
    from fada_deploy.evaluation import evaluate as score
    from fada_deploy.runtime.segmenter import Segmenter

    def dataset(space: Any) -> FrameDataset:
        if not isinstance(data, str | Path):
            if data_root is not None or split != "val":
                raise UsageError("data_root and split apply to a name; the data set is open")
            if data.space.names != space.names:
                raise UsageError(
                    f"{data.name}: opened with the classes of {data.space.name}, the model has "
                    f"those of {space.name}; open it with the label space of the model"
                )
            return data
        root = None if data_root is None else Path(data_root)
        return open_dataset(str(data), root, split=split, space=space)

    if isinstance(model, Segmenter):
        if (device, backend) != ("auto", "auto"):
            raise UsageError("device and backend apply to a path; the model is already open")
        return score(partial(model.labels, color="rgb"), dataset(model.space))
    path = resolve_builtin(Path(model))
    if path.suffix in MODEL_SUFFIXES:
        with Segmenter(path, device=device, backend=backend) as segmenter:
            return score(partial(segmenter.labels, color="rgb"), dataset(segmenter.space))
    if backend != "auto":
        raise UsageError(f"{path}: backend applies to exported models; PyTorch evaluates a run")
    try:
        from fada_deploy.training.device import choose_device
        from fada_deploy.training.predict import Predictor
        from fada_deploy.training.weights.checkpoints import load_model
    except ImportError as error:
        raise MissingExtraError(str(error.name), "train") from None
    where = choose_device(device)
    network, _ = load_model(final_weights(path), where)
    return score(Predictor(network, where).labels, dataset(network.spec.space))


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
