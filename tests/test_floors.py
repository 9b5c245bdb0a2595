"""The floors of the house: who may import whom. Floors are read from the architecture page, imports from the source, so
those inside functions and those for type checking count too."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("emorl_core", "server", "training", "emorl_cli")
CODE = (".py", ".js", ".css", ".html")  # other files of a package are data
MOST_LINES = 350
MOST_ROOMS = 12

PAGE = ROOT / "docs" / "architecture.md"
_ROW = re.compile(r"^\| *(\d*) *\| *`([\w/.]+)` *\|", re.MULTILINE)

SOCKET_MODULES = {
    "socket",
    "http",
    "urllib",
    "requests",
    "httpx",
    "aiohttp",
    "asyncio",
    "fastapi",
    "starlette",
    "uvicorn",
}


def files() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute name) of everything a file imports; `from a import b` counts as `a.b` when that is a module."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]).rstrip(".")
            for alias in node.names:
                name = f"{base}.{alias.name}"
                is_module = (ROOT / name.replace(".", "/")).with_suffix(".py").is_file() or (
                    ROOT / name.replace(".", "/")
                ).is_dir()
                yield node.lineno, name if is_module else base


def floors_of(page: str) -> dict[str, int]:
    """Path of a folder (ending in `/`) or a file -> floor; a row without a number is on the floor of the row above."""
    floors: dict[str, int] = {}
    number = 0
    for digits, path in _ROW.findall(page[page.index("## Packages and floors") :]):
        number = int(digits) if digits else number
        floors[path] = number
    return floors


@cache
def page_floors() -> dict[str, int]:
    return floors_of(PAGE.read_text(encoding="utf-8"))


def path_of(module: str) -> str:
    """Of one of our modules or packages, relative to the root."""
    path = module.replace(".", "/")
    return f"{path}.py" if (ROOT / f"{path}.py").is_file() else f"{path}/__init__.py"


def row_of(path: str, floors: Mapping[str, int]) -> str:
    """The most specific row that a file falls under. Raises KeyError for a file that nobody put on a floor."""
    rows = [row for row in floors if path == row or (row.endswith("/") and path.startswith(row))]
    if not rows:
        raise KeyError(f"{path}: put it on a floor in docs/architecture.md")
    return max(rows, key=len)


def floor(module: str) -> int:
    return page_floors()[row_of(path_of(module), page_floors())]


def ours(name: str) -> bool:
    return name.split(".")[0] in PACKAGES


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_from_its_own_floor_or_from_below(path: Path) -> None:
    own = module_of(path)
    for line, name in imports_of(path):
        if ours(name):
            where = f"{path.relative_to(ROOT)}:{line} (floor {floor(own)}) imports {name} (floor {floor(name)})"
            assert floor(name) <= floor(own), where
            assert not (own.startswith("server") and name.startswith("training")), where
            assert not (own.startswith("training") and name.startswith("server")), where


@pytest.mark.parametrize("path", [p for p in files() if p.is_relative_to(ROOT / "emorl_core")], ids=lambda p: p.stem)
def test_the_engine_opens_no_socket_and_reads_no_environment(path: Path) -> None:
    for line, name in imports_of(path):
        assert name.split(".")[0] not in SOCKET_MODULES, f"{path.name}:{line} imports {name}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr not in ("environ", "environb", "getenv"), (
                f"{path.name}:{node.lineno} reads the environment"
            )


def test_the_scheduler_knows_no_tensors() -> None:
    path = ROOT / "emorl_core" / "engine" / "scheduler.py"
    assert not [name for _, name in imports_of(path) if name.split(".")[0] in ("torch", "numpy")]


def test_only_settings_reads_the_environment_in_the_server() -> None:
    readers = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "server").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv")
    }
    assert readers <= {"server/settings.py"}


def circles(imports: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Files that import each other, directly or by way of others."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return [error.args[1]]
    return []


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {
        str(path.relative_to(ROOT)): {path_of(name) for _, name in imports_of(path) if ours(name)} for path in files()
    }
    assert not circles({path: names - {path} for path, names in graph.items()})


def test_a_circle_would_be_noticed() -> None:
    assert not circles({"a": {"b", "c"}, "b": {"c"}})
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}})


def test_every_file_is_on_a_floor_and_every_row_of_the_page_exists() -> None:
    floors = page_floors()
    assert {row_of(str(path.relative_to(ROOT)), floors) for path in files()} == set(floors)


def code_in(root: Path) -> Iterator[Path]:
    return (path for name in PACKAGES for path in (root / name).rglob("*") if path.suffix in CODE)


def too_long(paths: Iterable[Path]) -> dict[str, int]:
    """Files that nobody skims -> their lines."""
    lines = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    return {path: count for path, count in lines.items() if count > MOST_LINES}


def test_no_file_of_the_product_is_too_long_to_skim() -> None:
    assert not too_long(code_in(ROOT))


def test_a_file_that_is_too_long_would_be_noticed(tmp_path: Path) -> None:
    (tmp_path / "training" / "data").mkdir(parents=True)
    for name, lines in (("long.py", 351), ("fits.py", 350), ("words.yaml", 900)):
        (tmp_path / "training" / "data" / name).write_text("x\n" * lines)
    assert too_long(code_in(tmp_path)) == {str(tmp_path / "training" / "data" / "long.py"): 351}


def test_training_has_few_rooms() -> None:
    rooms = {path.name for path in (ROOT / "training").iterdir()} - {"__pycache__"}
    assert len(rooms) <= MOST_ROOMS, sorted(rooms)


def test_the_walls_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader of imports sees lazy, relative and aliased ones; a rule that cannot fail guards nothing."""
    (tmp_path / "emorl_core").mkdir()
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "data.py").write_text("")
    (tmp_path / "emorl_core" / "engine.py").write_text("")
    source = tmp_path / "emorl_core" / "weights.py"
    source.write_text(
        "def f():\n    from .engine import Engine\n    import training.data as d\n    from training import data\n"
    )
    monkeypatch.setattr("tests.test_floors.ROOT", tmp_path)
    assert [name for _, name in imports_of(source)] == ["emorl_core.engine", "training.data", "training.data"]


def test_floors_are_read_from_rows_with_and_without_a_number() -> None:
    page = (
        "## Packages and floors\n| floor | where |\n| 0 | `a/words.py` | x |\n| | `a/more.py` | x |\n| 2 | `a/` | x |\n"
    )
    floors = floors_of(page)
    assert floors == {"a/words.py": 0, "a/more.py": 0, "a/": 2}
    assert row_of("a/more.py", floors) == "a/more.py"
    assert row_of("a/b/c.py", floors) == "a/"
    with pytest.raises(KeyError):
        row_of("z.py", floors)
