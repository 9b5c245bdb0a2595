"""Text files written by people: UTF-8 with or without a byte-order mark, with any editor's line ends.

`str.splitlines` is not suitable: it also splits at form feeds, vertical tabs, U+0085 and U+2028, which people do not
see as line breaks, so one prompt would become two.
"""

from __future__ import annotations

from pathlib import Path

from emorl_core.files.reading import Unreadable, read_bytes

MARK = "\ufeff"
LINE_ENDS_OF_PROGRAMS = "\x85\u2028\u2029"  # characters that an editor shows within a line
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_SAMPLE = 1000  # bytes that tell whether a text is UTF-16 without a mark


def read_text(path: Path) -> str:
    """The text of a file, or of a pipe that the user names. Raises `Unreadable`."""
    return decode(read_bytes(path, regular=False), path)


def decode(data: bytes, name: object, *, kind: str = "", by_rows: bool = False) -> str:
    """Decode bytes, without the byte-order mark; line ends are not changed.

    Args:
        name: the file's, for messages.
        kind: the expected format (YAML), for messages.
        by_rows: keep NUL characters, and bytes that are not UTF-8 as lone surrogates, for a reader that refuses only
            the rows that contain them.

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

    A byte-order mark at the beginning of a line is dropped, as found in concatenated files.
    """
    if "\n" not in text:
        text = text.replace("\r", "\n")
    lines = [line.rstrip("\r").lstrip(MARK) for line in text.split("\n")]
    return lines[:-1] if not lines[-1] else lines  # the last line break does not start another line


def read_lines(path: Path) -> list[str]:
    """The lines of a file. Raises `Unreadable`."""
    return lines_of(read_text(path))


def _is_utf_16(data: bytes) -> bool:
    """Detected by its mark, or because every other byte of Latin letters is zero."""
    sample = data[:_SAMPLE]
    return data.startswith(_UTF_16_MARKS) or len(sample) // 3 < sample.count(0) < len(sample)
