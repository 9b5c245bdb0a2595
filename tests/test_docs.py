"""Documents are true: what they name exists, and what exists is named."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from emorl_cli.main import VERBS, Parser
from emorl_core.bundles.bundle import BaseRef, BundleSpec, ObjectiveSpec
from emorl_core.bundles.profiles import ProfileSpec
from tests import manual
from tests.documents import ROOT, blocks, lines

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def commands(text: str) -> list[str]:
    """Every `emorl …` that a reader could type: from code blocks and from `code` in a line."""
    typed = [*lines(text), *re.findall(r"`(emorl [^`]+)`", text)]
    return [re.split(r" [>|] ", line)[0] for line in typed if line.startswith("emorl ")]


def parse(command: str) -> None:
    """Parse a command as the program would, without running it. Raises SystemExit when it would be refused."""
    words = shlex.split(command)
    verb, *rest = words[words.index("emorl_cli") + 1 :] if words[0] == "torchrun" else words[1:]
    parser = Parser(prog=f"emorl {verb}", description="")
    import_module(VERBS[verb][0]).add_arguments(parser)
    parser.parse_args(rest)


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_is_in_the_readme(verb: str) -> None:
    assert any(command.split()[1] == verb for command in commands(README))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_commands_in_documents_are_accepted(document: Path) -> None:
    for command in commands(document.read_text(encoding="utf-8")):
        verb = command.split()[1]
        if verb in ("COMMAND", "--help", "--version"):  # the first stands for any of them
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


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_and_files_named_in_documents_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, flags=re.MULTILINE))
    for target in re.findall(r"`make ([a-z]+)|^make ([a-z]+)", text, flags=re.MULTILINE):
        assert "".join(target) in targets, f"{document.name} says make {''.join(target)}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_tests_named_in_documents_exist(document: Path) -> None:
    """`tests/….py::test_…`, and `::test_…` for another one of the same file."""
    file, functions = None, 0
    for path, name in re.findall(r"`(tests/[\w/]+\.py)?(?:::(test_\w+))?`", document.read_text(encoding="utf-8")):
        file = path or file
        if name:
            functions += 1
            assert file is not None
            source = (ROOT / file).read_text(encoding="utf-8")
            assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE), f"{document.name}: {file}::{name}"
    assert functions > 40 or document.name != "operations.md"


def test_routes_in_the_readme_exist() -> None:
    from emorl_core.fake import fake_ensemble
    from server.app import create_app
    from server.settings import Settings

    paths = create_app(Settings(), fake_ensemble()).openapi()["paths"]
    named = re.findall(r"(GET|POST) (/[a-z/]+)", README)
    assert named
    for method, path in named:
        assert method.lower() in paths.get(path, {}), f"{method} {path}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_settings_named_in_documents_exist(document: Path) -> None:
    from server.settings import ENV_PREFIX, Settings

    known = {(ENV_PREFIX + name).upper() for name in Settings.model_fields} | {"EMORL_CI_REQUIRE", "EMORL_REAL_MODEL"}
    assert set(re.findall(r"EMORL_[A-Z][A-Z_]*", document.read_text(encoding="utf-8"))) <= known


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
    wanted = [
        *project["dependencies"],
        *extras["dev"],
        *extras["data"],
        *extras["search"],
        *extras["tracing"],
        *extras["docs"],
    ]
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


def test_files_named_on_the_architecture_page_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:emorl_core|server|training|emorl_cli|benchmarks|examples|recipes|docker)/[\w./]*)`", page)
    assert len(named) > 40
    assert not [name for name in named if not (ROOT / name).exists()]


# --- the reference ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", manual.TABLES)
def test_the_reference_is_what_the_code_has(document: str) -> None:
    """Commands and options, recipe keys, request fields, errors. When this fails: `python -m tests.manual`, and read what
    it changed. Settings, routes and metrics are held in the same way by tests/test_observability.py."""
    text = (manual.REFERENCE / document).read_text(encoding="utf-8")
    assert text == manual.rewritten(document, text)


def test_every_route_that_takes_a_body_has_its_fields_in_the_reference() -> None:
    page = (manual.REFERENCE / "http.md").read_text(encoding="utf-8")
    routes = manual.request_models()
    assert {"POST /generate", "POST /sweep", "POST /v1/completions", "POST /v1/chat/completions"} <= set(routes)
    for route, model in routes.items():
        section = page.split(f"### {route}\n")[1].split("\n### ")[0]
        for name, field in model.model_fields.items():
            assert f"| `{field.alias or name}` |" in section, f"{route}: {name}"


def test_every_key_of_a_bundle_is_in_the_reference() -> None:
    page = (manual.REFERENCE / "bundle.md").read_text(encoding="utf-8")
    sections = {"## `bundle.yaml`": BundleSpec, "`base`:": BaseRef, "`objectives.<name>`:": ObjectiveSpec}
    sections["`profiles.<name>`:"] = ProfileSpec
    for start, model in sections.items():
        (table,) = re.findall(r"(?:\|.*\n)+", page.split(f"\n{start}\n")[1])[:1]
        keys = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
        assert keys == list(model.model_fields), start


def test_bundles_in_the_documents_are_valid() -> None:
    found = [
        block
        for path in DOCUMENTS
        for block in blocks(path.read_text(encoding="utf-8"), "yaml")
        if "format: emorl-bundle" in block
    ]
    assert found
    for block in found:
        assert BundleSpec.model_validate(yaml.safe_load(block)).default_profile == "balanced"


def test_figures_in_the_readme_stand_in_their_reports() -> None:
    table = README.split("## Figures")[1].split("\n## ")[0]
    rows = re.findall(r"^\| [^|]+ \| (\d[\d.]*)[^|]* \| \[[^]]+\]\(([^)#]+)", table, re.MULTILINE)
    assert len(rows) == len(re.findall(r"^\| (?!what)\w", table, re.MULTILINE)) > 0
    for figure, report in rows:
        assert re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", (ROOT / report).read_text(encoding="utf-8")), figure


# --- the site --------------------------------------------------------------------------------------------------------


class Loads(HTMLParser):
    """What a browser fetches by itself when it opens a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        if tag == "a":
            return
        if tag == "link" and named.get("rel") in ("canonical", "alternate", "next", "prev"):
            return  # for search engines; nothing is fetched
        self.found += [named[name] for name in ("src", "href", "srcset", "data", "action") if name in named]
        if "mermaid" in named.get("class", ""):
            self.found.append("https: the theme fetches its diagram library from elsewhere")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make docs` builds. Strict: a broken link or anchor, or a page outside the navigation, is an error."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_has_every_page(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert pages | {Path("index.html"), Path("contributing.html"), Path("changelog.html")} <= {
        path.relative_to(site) for path in site.rglob("*.html")
    }
    assert "N objectives for the price of one model" in (site / "index.html").read_text(encoding="utf-8")
    assert not list(site.glob("*.py"))


def test_the_site_asks_no_other_server(site: Path) -> None:
    for page in site.rglob("*.html"):
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert loads.found, page.name
        assert not [each for each in loads.found if re.match(r"(https?:)?//|https:", each)], page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import\s)[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name


def test_links_to_files_of_the_project_lead_to_their_copies(site: Path) -> None:
    page = (site / "tutorial.html").read_text(encoding="utf-8")
    assert 'href="project/recipes/tutorial.yaml"' in page
    copy = site / "project" / "recipes" / "tutorial.yaml"
    assert copy.read_bytes() == (ROOT / "recipes" / "tutorial.yaml").read_bytes()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_lists_have_a_blank_line_before_them(document: Path) -> None:
    """The repository's browser shows a list without one; the site would run it into the paragraph."""
    above, fenced = "", False
    for number, line in enumerate(document.read_text(encoding="utf-8").split("\n"), start=1):
        fenced ^= line.startswith("```")
        starts = not fenced and re.match(r"([-*]|\d+\.) ", line)
        inside = re.match(r"\s*([-*]|\d+\.) |\s{2,}|#|$", above)
        assert not starts or inside, f"{document.name}:{number}"
        above = line


def test_every_module_says_what_it_is_for() -> None:
    for folder in ("emorl_core", "server", "training", "emorl_cli", "examples", "docs"):
        for path in (ROOT / folder).rglob("*.py"):
            assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), (
                f"{path.relative_to(ROOT)} has no docstring"
            )
