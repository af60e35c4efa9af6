"""Which frames and label files of a custom data set belong together.

Patterns name the frames, a template names the label file of each frame, and a list selects frames.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fada_deploy.common.errors import DataError
from fada_deploy.data.base import Pair

_PLACEHOLDERS = ("{stem}", "{folder}", "{path}")


@dataclass(frozen=True)
class _Listed:
    """One line of a list: the frame as it is named, and its label file in a list of two columns."""

    text: str
    name: str
    labels: str | None = None


def find_pairs(
    folder: Path, images: str, labels: str | None, list_name: str | None, where: str
) -> tuple[list[Pair], dict[Path, str]]:
    """Return the pairs of a split, and the files that are not part of a pair with the reason.

    Args:
        folder: Folder that paths are relative to.
        images: Glob of the frames; `[` and `]` in the name of an existing folder are literal.
        labels: Path of the label file of a frame, with `{stem}` (the name of the frame without its
            suffix), `{folder}` (the name of its folder) or `{path}` (its path below the fixed part
            of `images`, without the suffix). None if there are no labels, or if the list has them.
        list_name: File with one frame per line: a name, a stem, or a path, and optionally the label
            file in a second column. None uses all frames.
        where: The split, for messages.

    Raise `DataError` if no frame is found, a label file is missing, or two frames share one.
    """
    base = _fixed_part(folder, images)
    found = [p for p in sorted(map(Path, _expand(folder, images))) if p.is_file()]
    if not found:
        raise DataError(f"{where}: no file matches images = {images!r} in {folder.resolve()}")
    if list_name is None:
        return _pairs([(p, None) for p in found], folder, base, labels, where), {}
    listed = _read_list(folder / list_name)
    chosen, skipped = _select(found, folder, listed, list_name, where)
    skipped |= {p: f"not named in {list_name}" for p in found if p not in chosen}
    return _pairs(list(chosen.items()), folder, base, labels, where), skipped


def _pairs(
    frames: Sequence[tuple[Path, str | None]],
    folder: Path,
    base: Path,
    template: str | None,
    where: str,
) -> list[Pair]:
    if template is None and not any(labels for _, labels in frames):
        return [Pair(image, None, image.parent.name) for image, _ in frames]
    if template is None and (without := [image for image, labels in frames if not labels]):
        raise DataError(
            f"{where}: {len(without)} of {len(frames)} frames of the list have no label file, for "
            f'example {without[0]}; add it after the frame, or set labels = "labels/{{stem}}.png"'
        )
    if template is not None and not any(name in template for name in _PLACEHOLDERS):
        raise DataError(
            f"{where}: labels must contain {{stem}} or {{path}}, for example "
            f'"labels/{{stem}}.png", got {template!r}'
        )
    pairs = []
    for image, listed in frames:
        path = folder / listed if listed else _fill(template or "", image, folder, base)
        pairs.append(Pair(image, path, image.parent.name))
    _check_label_files(pairs, template, where)
    return pairs


def _fill(template: str, image: Path, folder: Path, base: Path) -> Path:
    below = image.relative_to(base) if image.is_relative_to(base) else Path(image.name)
    text = template.replace("{stem}", image.stem).replace("{folder}", image.parent.name)
    return folder / text.replace("{path}", below.with_suffix("").as_posix())


def _check_label_files(pairs: Sequence[Pair], template: str | None, where: str) -> None:
    counts = Counter(pair.labels for pair in pairs)
    shared = [pair for pair in pairs if counts[pair.labels] > 1]
    if shared:
        first, second = [p.image for p in shared if p.labels == shared[0].labels][:2]
        raise DataError(
            f"{where}: {len(shared)} frames share a label file with another frame, for example "
            f"{first} and {second} ({shared[0].labels}); use {{folder}} or {{path}} in labels = "
            f"{template!r}"
        )
    missing = [p.labels for p in pairs if p.labels is not None and not p.labels.is_file()]
    if missing:
        raise DataError(
            f"{where}: {len(missing)} of {len(pairs)} frames have no label file, the first missing "
            f"file is {missing[0]}"
        )


def _read_list(path: Path) -> list[_Listed]:
    """Return the lines of a list; UTF-8 with or without a byte order mark, and any line ends."""
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise DataError(f"{path}: not a UTF-8 text file ({error})") from None
    if "\0" in text:
        raise DataError(f"{path}: not a UTF-8 text file (it contains zero bytes)")
    lines = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("#"):
            continue
        name = _normalized(line)
        # With a tab, names may contain spaces and commas.
        columns = list(map(_normalized, line.split("\t"))) if "\t" in line else []
        if len(columns) != 2:
            columns = name.replace(",", " ").split()
        # A second column looks like a file.
        if len(columns) == 2 and Path(columns[1]).suffix:
            lines.append(_Listed(line, columns[0], columns[1]))
        else:
            lines.append(_Listed(line, name))
    return lines


def _normalized(name: str) -> str:
    """Return a path of a list with forward slashes and without a leading `./` or `/`."""
    return os.path.normpath(name.replace("\\", "/")).replace(os.sep, "/").lstrip("/")


def _select(
    images: Sequence[Path], folder: Path, listed: Sequence[_Listed], name: str, where: str
) -> tuple[dict[Path, str | None], dict[Path, str]]:
    """Return the listed frames with their label files, and the names that match no frame.

    A line matches a frame whose path ends with it, with or without the suffix.
    """
    by_end: dict[str, list[Path]] = {}
    for image in images:
        # The path as it is written: below the folder of the description, or absolute.
        shown = image.relative_to(folder) if image.is_relative_to(folder) else image
        parts = shown.as_posix().lstrip("/").split("/")
        ends = {"/".join(parts[start:]) for start in range(len(parts))}
        ends.add(image.absolute().as_posix().lstrip("/"))
        for end in ends:
            for key in {end, end.removesuffix(image.suffix)}:
                by_end.setdefault(key, []).append(image)
    chosen: dict[Path, str | None] = {}
    skipped: dict[Path, str] = {}
    for line in listed:
        # A name may contain spaces, so the line is a name first, and two columns otherwise.
        matches, labels = by_end.get(_normalized(line.text), []), None
        if not matches:
            matches, labels = by_end.get(line.name, []), line.labels
        if len(matches) > 1:
            raise DataError(
                f"{where}: the line {line.text!r} of {name} names {len(matches)} frames, "
                f"{matches[0]} and {matches[1]}; write the folder before the name"
            )
        if matches:
            chosen[matches[0]] = labels
        else:
            skipped[Path(line.text)] = f"named in {name}, not found"
    if not chosen:
        raise DataError(f"{where}: none of the {len(listed)} lines of {name} names one of `images`")
    return {image: chosen[image] for image in images if image in chosen}, skipped


def _expand(folder: Path, pattern: str) -> list[str]:
    """Return the paths that match a glob; the fixed part of it may contain `[` and `]`."""
    base = _fixed_part(folder, pattern)
    rest = os.path.relpath(folder / pattern, base) if base != folder else pattern
    # glob.glob also accepts absolute patterns, Path.glob does not.
    return glob.glob(os.path.join(glob.escape(str(base)), rest), recursive=True)


def _fixed_part(folder: Path, pattern: str) -> Path:
    """Return the existing folder at the beginning of a pattern that contains no wildcard."""
    base = folder
    for part in Path(pattern).parts[:-1]:
        if not (base / part).is_dir() or any(c in part for c in "*?"):
            break
        base = base / part
    return base
