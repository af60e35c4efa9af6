"""Plain-text tables: alignment, short rows, and tables without a header."""

from __future__ import annotations

from fada_deploy.common.tables import format_table


def test_first_column_is_left_aligned_and_numbers_right_aligned() -> None:
    text = format_table(("class", "pixels"), [("road", "5"), ("car", "1234567")])
    assert text == "class   pixels\nroad         5\ncar    1234567"


def test_alignment_and_indent_can_be_chosen() -> None:
    assert format_table(("a", "b"), [("xx", "y")], align="rl", indent="  ") == "   a  b\n  xx  y"


def test_short_rows_are_filled_and_lines_have_no_trailing_spaces() -> None:
    lines = format_table(("name", "value", ""), [("a",), ("b", "1", "note")], align="lrl")
    assert lines.splitlines() == ["name  value", "a", "b         1  note"]


def test_empty_header_is_not_written() -> None:
    assert format_table((), [("a", "1"), ("bb", "22")]) == "a    1\nbb  22"
    assert format_table((), []) == ""
