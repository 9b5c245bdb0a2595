"""What mkdocs does not do by itself: pages that lie beside docs/, and links that lead out of it.

The same files are read in the repository and on the site. README.md, CONTRIBUTING.md and CHANGELOG.md become pages, and
a link to any other file of the project (a recipe, an example, an alert rule) leads to a copy of it below `project/`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
COPIES = "project"
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)(?=[)#])")


def on_files(files: Files, config: Any) -> Files:
    for name, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    for page in list(files.documentation_pages()):
        source = Path(str(page.abs_src_path))
        for target in LINK.findall(source.read_text(encoding="utf-8")):
            path = _within(source, target)
            if path is None or _uri(path) in PAGES.values() or files.get_file_from_path(_uri(path)) is not None:
                continue
            if path.is_file():
                files.append(File.generated(config, _uri(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    source = Path(str(page.file.abs_src_path))

    def rewritten(link: re.Match[str]) -> str:
        path = _within(source, link[1])
        if path is None or not path.is_file():
            return link[1]  # not there: mkdocs says so
        return os.path.relpath(_uri(path), Path(page.file.src_uri).parent)

    return LINK.sub(rewritten, markdown)


def _within(source: Path, target: str) -> Path | None:
    """The file of this project that a link in `source` means; None for one outside of it."""
    path = (source.parent / target).resolve()
    return path if path.is_relative_to(ROOT) else None


def _uri(path: Path) -> str:
    """Where the site has it, relative to its top."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    name = path.relative_to(ROOT).as_posix()
    return PAGES.get(name, f"{COPIES}/{name}")
