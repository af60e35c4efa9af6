"""Plain-text tables for the output of all commands."""

from __future__ import annotations

from collections.abc import Sequence


def format_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, align: str = "", indent: str = ""
) -> str:
    """Return a table as text: columns two spaces apart, as wide as their widest cell.

    `align` has one letter per column, "l" or "r"; by default the first column is left-aligned and
    the others are right-aligned. A row may be shorter than the header. Empty header cells are
    allowed; if all are empty, no header line is written.
    """
    width = max([len(header), *map(len, rows)], default=0)
    align = align or "l" + "r" * (width - 1)
    lines = [[*row, *[""] * (width - len(row))] for row in ([header] if any(header) else [])]
    lines += [[*row, *[""] * (width - len(row))] for row in rows]
    widths = [max((len(line[i]) for line in lines), default=0) for i in range(width)]
    return "\n".join(
        (
            indent
            + "  ".join(
                cell.rjust(w) if side == "r" else cell.ljust(w)
                for cell, w, side in zip(line, widths, align, strict=True)
            )
        ).rstrip()
        for line in lines
    )
