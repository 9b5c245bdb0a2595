"""Documents are true: what they name exists, and what exists is named."""

from __future__ import annotations

import ast
import json
import re
import shlex
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from emorl_cli.main import VERBS, Parser
from emorl_core.bundle import BundleSpec

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(text: str) -> list[str]:
    """Every `emorl …` that a reader could type: from code blocks and from `code` in a line."""
    lines = [
        line.split("#")[0].strip() for block in blocks(text, "bash") for line in block.replace("\\\n", " ").split("\n")
    ]
    lines += re.findall(r"`(emorl [^`]+)`", text)
    return [line for line in lines if line.startswith("emorl ")]


def parse(command: str) -> None:
    """Parse a command as the program would, without running it. Raises SystemExit when it would be refused."""
    verb, *rest = shlex.split(command)[1:]
    parser = Parser(prog=f"emorl {verb}", description="")
    import_module(VERBS[verb][0]).add_arguments(parser)
    parser.parse_args(rest)


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_is_in_the_readme(verb: str) -> None:
    assert any(command.split()[1] == verb for command in commands(README))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_documents_are_accepted(document: Path) -> None:
    for command in commands(document.read_text(encoding="utf-8")):
        verb = command.split()[1]
        if verb == "COMMAND":  # stands for any of them
            continue
        assert verb in VERBS, command
        if len(command.split()) > 2 or verb == "demo":  # `emorl serve` alone names the command, it does not call it
            parse(command)


@pytest.mark.parametrize("verb", VERBS)
def test_examples_of_help_are_accepted(verb: str) -> None:
    parser = Parser(prog=f"emorl {verb}", description="")
    import_module(VERBS[verb][0]).add_arguments(parser)
    assert parser.epilog is not None
    examples = [line.strip() for line in parser.epilog.splitlines()[1:]]
    typed = [re.sub(r"^(\w+=\S+ )+", "", example).split(" | ")[-1].split(" > ")[0] for example in examples]
    assert any(command.startswith(f"emorl {verb} ") or command == f"emorl {verb}" for command in typed)
    for command in typed:
        parse(command)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_files_named_in_documents_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, flags=re.MULTILINE))
    for target in re.findall(r"`make ([a-z]+)|^make ([a-z]+)", text, flags=re.MULTILINE):
        assert "".join(target) in targets, f"{document.name} says make {''.join(target)}"


def test_the_bundle_in_the_readme_is_valid() -> None:
    (block,) = blocks(README, "yaml")
    spec = BundleSpec.model_validate(yaml.safe_load(block))
    assert spec.default_profile == "balanced"


def test_the_request_in_the_readme_is_accepted_by_the_server() -> None:
    from server.schemas import GenerateRequest

    bodies = [json.loads(body) for block in blocks(README, "bash") for body in re.findall(r"-d '([^']+)'", block)]
    assert bodies
    for body in bodies:
        GenerateRequest.model_validate(body)


def test_routes_in_the_readme_exist() -> None:
    from emorl_core.fake import fake_ensemble
    from server.app import create_app
    from server.settings import Settings

    paths = create_app(Settings(), fake_ensemble()).openapi()["paths"]
    named = re.findall(r"(GET|POST) (/[a-z/]+)", README)
    assert named
    for method, path in named:
        assert method.lower() in paths.get(path, {}), f"{method} {path}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_settings_named_in_documents_exist(document: Path) -> None:
    from server.settings import ENV_PREFIX, Settings

    known = {(ENV_PREFIX + name).upper() for name in Settings.model_fields} | {"EMORL_CI_REQUIRE"}
    assert set(re.findall(r"EMORL_[A-Z][A-Z_]*", document.read_text(encoding="utf-8"))) <= known


def test_python_in_the_readme_runs_against_the_real_front_door(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from emorl_core.ensemble import Ensemble
    from emorl_core.fake import fake_ensemble

    monkeypatch.setattr(Ensemble, "load", lambda where: fake_ensemble())
    for block in blocks(README, "python"):
        exec(compile(block, "README.md", "exec"), {})
    assert "FinishReason" not in capsys.readouterr().out  # prints as a word


def test_the_changelog_has_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_pins_are_exact_and_cover_what_the_project_asks_for() -> None:
    """No address, no local version, no range: the file must mean the same everywhere."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", line) for line in lines)
    pinned = {_normal(line.split("==")[0]) for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["dev"], *extras["data"], *extras["search"], *extras["tracing"]]
    names = {_normal(re.split(r"[<>=\[ ]", requirement)[0]) for requirement in wanted}
    assert names - {"emorl"} <= pinned


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_no_file_of_the_project_names_a_path_of_one_machine() -> None:
    """What is installed or documented must mean the same on every machine."""
    sources = [
        path for folder in ("emorl_core", "server", "training", "emorl_cli") for path in (ROOT / folder).rglob("*.py")
    ]
    for path in [*sources, *DOCUMENTS, ROOT / "Makefile", ROOT / ".ci" / "run"]:
        assert not re.search(r"(?<![\w.])/(work|root|home|opt)/", path.read_text(encoding="utf-8")), path.name


def test_every_module_says_what_it_is_for() -> None:
    for folder in ("emorl_core", "server", "training", "emorl_cli"):
        for path in (ROOT / folder).rglob("*.py"):
            assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), (
                f"{path.relative_to(ROOT)} has no docstring"
            )
