"""Text that people write into files: UTF-8 with or without a byte-order mark, with the line ends of any editor.

`str.splitlines` is not for such text: it also divides at form feeds, vertical tabs, U+0085 and U+2028, which a person
does not see as a new line, and one prompt becomes two.
"""

from __future__ import annotations

from pathlib import Path

from emorl_core.files.reading import Unreadable, read_bytes

MARK = "\ufeff"
LINE_ENDS_OF_PROGRAMS = "\x85\u2028\u2029"  # which an editor shows within a line
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_SAMPLE = 1000  # bytes that tell whether a text is UTF-16 without a mark


def read_text(path: Path) -> str:
    """The text of a file, or of a pipe that its user names. Raises `Unreadable`."""
    return decode(read_bytes(path, regular=False), path)


def decode(data: bytes, name: object, *, kind: str = "", by_rows: bool = False) -> str:
    """Bytes as text, without the byte-order mark; line ends stay as they are.

    Args:
        name: of the file, for the message.
        kind: what it is read as (YAML), for the message.
        by_rows: let NUL characters and bytes that are not UTF-8 through, these as half surrogate pairs, for a reader
            that refuses only the rows which hold them.

    Raises:
        Unreadable: UTF-16, or, unless `by_rows`, a line that is not UTF-8 or holds a NUL character.
    """

    def refused(why: str) -> Unreadable:
        return Unreadable(f"cannot be read{f' as {kind}' if kind else ''}: {why}", path=name)

    if _is_utf_16(data):
        raise refused("it is not UTF-8 but UTF-16; save it as UTF-8")
    if by_rows:
        return data.decode("utf-8", errors="surrogateescape").lstrip(MARK)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise refused(f"line {line} is not UTF-8 text") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise refused(f"line {line} holds a NUL character")
    return text.lstrip(MARK)


def lines_of(text: str) -> list[str]:
    """The lines without their ends: LF or CR LF; a CR alone only in a text that has no LF, as old Macs wrote it.

    A mark at the beginning of a line is left out: files with marks were joined there.
    """
    if "\n" not in text:
        text = text.replace("\r", "\n")
    lines = [line.rstrip("\r").lstrip(MARK) for line in text.split("\n")]
    return lines[:-1] if not lines[-1] else lines  # the last line's end begins no other line


def read_lines(path: Path) -> list[str]:
    """The lines of a file. Raises `Unreadable`."""
    return lines_of(read_text(path))


def _is_utf_16(data: bytes) -> bool:
    """By its mark, or because every other byte of the Latin alphabet's letters is zero in it."""
    sample = data[:_SAMPLE]
    return data.startswith(_UTF_16_MARKS) or len(sample) // 3 < sample.count(0) < len(sample)
