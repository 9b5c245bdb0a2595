"""`GET /`: the page's files with the right types, a strict policy and revalidation; nothing else of the disk; a switch."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

import httpx
import pytest

from server.api.page import FOLDER, PREFIX, read_assets
from server.settings import Settings, load_settings
from tests.http.harness import error_of, in_process

TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".html": "text/html; charset=utf-8",
}
ROOT = Path(__file__).parents[2]


def test_the_page_and_all_its_files_are_served(client: httpx.Client) -> None:
    page = client.get("/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    files = [file for file in FOLDER.iterdir() if file.name != "index.html"]
    assert len(files) > 20
    for file in files:
        answer = client.get(PREFIX + file.name)
        assert (answer.status_code, answer.headers["content-type"]) == (200, TYPES[file.suffix]), file.name
        assert answer.content == file.read_bytes()


def test_what_the_files_name_exists(client: httpx.Client) -> None:
    """An import or a link that leads nowhere would only show in a browser."""
    for path, asset in read_assets().items():
        assert not re.findall(r'(?:href|src)="/|(?:from|import) "/', asset.body.decode()), (
            "a prefix may stand before all"
        )
        named = re.findall(r'(?:from|import) "\./([^"]+)"|(?:href|src)="playground/([^"]+)"', asset.body.decode())
        for name in filter(None, (a or b for a, b in named)):
            assert client.get(PREFIX + name).status_code == 200, f"{path} names {name}"


def test_the_policy_allows_this_server_only_and_nothing_inline(client: httpx.Client) -> None:
    page = client.get("/")
    policy = dict(part.strip().partition(" ")[::2] for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "style=" not in page.text
    assert re.findall(r"<script(?![^>]* src=)", page.text) == []
    assert re.findall(r"https?://", page.text) == []


def test_no_file_of_the_page_reaches_elsewhere_or_parses_text_as_markup() -> None:
    for file in FOLDER.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert (
            re.findall(
                r"https?://|\bimport\(|innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|@import|url\(h", text
            )
            == []
        ), file.name
        if file.suffix == ".js":
            assert text.startswith("// "), f"{file.name} does not say what it is for"
        assert len(text.splitlines()) < 300


def test_a_browser_that_has_a_file_is_told_to_keep_it(client: httpx.Client) -> None:
    first = client.get("/playground/app.js")
    assert first.headers["cache-control"] == "no-cache"
    etag = first.headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = client.get("/playground/app.js", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert client.get("/playground/app.js", headers={"If-None-Match": '"other"'}).status_code == 200
    assert client.get("/playground/api.js").headers["etag"] != etag
    assert client.head("/").headers["content-length"] == str(len(client.get("/").content))
    assert client.post("/").status_code == 405


@pytest.mark.parametrize(
    "path",
    ["/playground/", "/playground", "/playground/../settings.py", "/playground/..%2fsettings.py", "/playground/%2e%2e/app.py",
     "/playground/app.js/", "/playground//app.js", "/playground/__init__.py", "/playground/index.html", "//", "/index.html"],
)  # fmt: skip
def test_nothing_else_is_served(client: httpx.Client, path: str) -> None:
    response = client.send(httpx.Request("GET", client.base_url.copy_with(raw_path=path.encode())))
    assert (response.status_code, error_of(response)["code"]) == (404, "not_found")


async def test_the_page_asks_for_no_key_and_what_it_calls_does() -> None:
    async with in_process(load_settings(api_keys="first")) as (client, _):
        assert (await client.get("/")).status_code == 200
        assert (await client.get("/playground/app.js")).status_code == 200
        assert (await client.get("/info")).status_code == 401
        assert (await client.get("/playground/nothing.js")).status_code == 401


async def test_a_setting_switches_it_off() -> None:
    async with in_process(Settings(playground=False)) as (client, _):
        for path in ("/", "/playground/app.js"):
            response = await client.get(path)
            assert (response.status_code, error_of(response)["code"]) == (404, "not_found")


def test_the_files_are_packaged() -> None:
    """Package data is given by pattern: a folder inside the folder would be left out of a wheel."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    assert "playground/*" in data["server"]
    assert [path for path in FOLDER.iterdir() if path.is_dir()] == []


def test_the_page_on_clinical_use_is_the_documents() -> None:
    """The playground links to it; a server has no other documents beside it."""
    maker = runpy.run_path(str(ROOT / "docs" / "make_clinical_page.py"))
    page = (FOLDER / "clinical-use.html").read_text(encoding="utf-8")
    assert page == maker["rendered"](maker["SOURCE"].read_text(encoding="utf-8")), "run docs/make_clinical_page.py"
    assert "](" not in page
