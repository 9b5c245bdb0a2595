"""The results as tables for the terminal, and in Markdown for docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.figures import Figure, Results
from benchmarks.speed.targets import ratio_text
from emorl_core.errors import InvalidRequest

BEGIN, END = "<!-- emorl bench --render: begin -->", "<!-- emorl bench --render: end -->"
_DIGITS = {"ms_per_token": 2, "limit_ms": 2, "tokens_per_s": 1, "gb_per_s": 1}
_SIZES = ("shape", "dtype", "device", "objectives", "requests", "source", "new", "position")


def tables(results: Results) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, head, rows) per case; one row per engine and size, one column per metric; only columns that vary."""
    found = []
    for case in dict.fromkeys(figure.case for figure in results.figures):
        figures = [figure for figure in results.figures if figure.case == case]
        metrics = list(dict.fromkeys(figure.metric for figure in figures))
        rows: dict[tuple[Any, ...], dict[str, Figure]] = {}
        for figure in figures:
            sizes = tuple(getattr(figure, name) for name in _SIZES)
            rows.setdefault((figure.engine, *sizes), {})[figure.metric] = figure
        varying = [i for i, name in enumerate(_SIZES) if len({key[1 + i] for key in rows}) > 1]
        fixed = [
            f"{name} {value}"
            for i, name in enumerate(_SIZES)
            if i not in varying and (value := next(iter(rows))[1 + i]) not in (0, "", "cpu")
        ]
        head = ["engine", *(_SIZES[i] for i in varying), *(metric.replace("_", " ") for metric in metrics)]
        lines = [
            [key[0], *(str(key[1 + i] or "") for i in varying), *(_cell(by_metric.get(m)) for m in metrics)]
            for key, by_metric in rows.items()
        ]
        found.append((", ".join([case, *fixed]), head, lines))
    return found


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    digits = _DIGITS.get(figure.metric, 1)
    return f"{figure.median:,.{digits}f}" if len(figure.values) == 1 else figure.spread(digits)


def terminal(results: Results, targets: Sequence[dict[str, Any]]) -> str:
    """All results in columns; medians with minimum and maximum over rounds."""
    lines = [machine_line(results)]
    for title, head, rows in tables(results):
        lines += ["", title, *_columns([head, *rows])]
    for name, facts in results.facts.items():
        if "settings" in facts:
            lines.append(f"  {name}: {facts['settings']}")
    if any(row["value"] is not None for row in targets):
        cells = [["target", "", "measured", ""]]
        cells += [[row["name"], row["target"], _measured(row), row["verdict"]] for row in targets]
        lines += ["", *_columns(cells)]
    lines += ["", *results.notes] if results.notes else []
    return "\n".join(lines)


def markdown(results: Results, targets: Sequence[dict[str, Any]]) -> str:
    """The generated part of docs/performance.md."""
    lines = [machine_line(results), ""]
    cells = [
        [row["name"], row["target"], _measured(row), row.get("above", ""), row.get("below", ""), row["verdict"]]
        for row in targets
    ]
    lines += _pipes(["case", "target", "measured", "this", "that", ""], cells)
    for title, head, rows in tables(results):
        lines += ["", f"**{title}**", "", *_pipes(head, rows)]
    settings = [f"- {name}: {facts['settings']}" for name, facts in results.facts.items() if "settings" in facts]
    lines += ["", *settings] if settings else []
    lines += ["", *(f"- {note}" for note in results.notes)] if results.notes else []
    return "\n".join(lines) + "\n"


def put_into(page: Path, text: str) -> None:
    """Replace the text between the two marks of a page.

    Raises:
        InvalidRequest: the page cannot be read or does not have both marks, in order.
    """
    from emorl_core.files.writing import replacing

    try:
        before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    except OSError as error:
        raise InvalidRequest(f"--into {page}: cannot be read: {error.strerror}") from None
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InvalidRequest(f"--into {page}: has not both marks; allowed: a page with {BEGIN} and {END}")
    with replacing(page) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


def machine_line(results: Results) -> str:
    machine = results.machine
    versions = ", ".join(f"{name} {found}" for name, found in machine.get("versions", {}).items() if name != "emorl")
    return (
        f"{machine.get('cpu')} ({machine.get('cpu_model')}; {' '.join(machine.get('cpu_flags', []))}), "
        f"{machine.get('cores')} cores, {machine.get('threads')} threads, {machine.get('memory_gib')} GiB; "
        f"{'GPU ' + machine['gpu'] + '; ' if machine.get('gpu') else ''}"
        f"Python {machine.get('python')}, {versions}; commit {machine.get('commit')}; {machine.get('measured')}"
    )


def _measured(row: dict[str, Any]) -> str:
    return "" if row["value"] is None else ratio_text(row)


def _columns(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        yield "  " + "   ".join([first, *rest]).rstrip()


def _pipes(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"
