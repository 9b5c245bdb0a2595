"""The floors of the house: who may import whom. Read from the source, so imports inside functions count too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("emorl_core", "server", "training", "emorl_cli")

# Every module of the engine has a floor; a new file is put on one here and in docs/architecture.md.
CORE_FLOORS: dict[str, int] = {
    "errors": 0,
    "types": 0,
    "weights": 0,
    "combine": 0,
    "sampling": 0,
    "detokenize": 0,
    "precision": 0,
    "disk": 0,
    "huge_pages": 0,
    "text_files": 0,
    "lanes": 1,
    "adapters": 1,
    "kv_cache": 1,
    "prefill_cache": 1,
    "models": 1,
    "bundle": 1,
    "tokenizer": 1,
    "scheduler": 2,
    "runner": 2,
    "engine": 2,
    "driver": 2,
    "line": 2,
    "sweep": 2,
    "ensemble": 2,
    "fake": 2,
}
ROOM_FLOORS = {"server": 3, "training": 3, "emorl_cli": 4}
FRONT_DOOR_FLOOR = (
    2  # `emorl_core/__init__.py` opens onto the top floor of its own room: `from emorl_core import Ensemble`
)

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


def floor(module: str) -> int:
    """Of one of our modules. Raises KeyError for a file of the engine that nobody put on a floor."""
    room, _, rest = module.partition(".")
    if room != "emorl_core":
        return ROOM_FLOORS[room]
    return CORE_FLOORS[rest.split(".")[0]] if rest else FRONT_DOOR_FLOOR


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
    path = ROOT / "emorl_core" / "scheduler.py"
    assert not [name for _, name in imports_of(path) if name.split(".")[0] in ("torch", "numpy")]


def test_only_settings_reads_the_environment_in_the_server() -> None:
    readers = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "server").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv")
    }
    assert readers <= {"server/settings.py"}


def test_every_file_of_the_engine_is_on_a_floor() -> None:
    core = ROOT / "emorl_core"
    found = {path.relative_to(core).parts[0].removesuffix(".py") for path in core.rglob("*.py")} - {"__init__"}
    assert found <= set(CORE_FLOORS), "put it on a floor in this test and in docs/architecture.md"


def test_the_architecture_page_lists_every_file_of_the_engine() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in CORE_FLOORS:
        assert f"{name}/" in page or f"{name}.py" in page, name


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
    assert floor("emorl_core.engine") > floor("emorl_core.weights")
