"""`python docs/make_clinical_page.py`: the page that the playground links to, server/playground/clinical-use.html, from
docs/explanation/clinical-use.md.

A server has no other documents beside it, so links to them become plain words.
"""

from __future__ import annotations

import re
from pathlib import Path

import markdown

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "docs" / "explanation" / "clinical-use.md"
PAGE = ROOT / "server" / "playground" / "clinical-use.html"
SHELL = """<!doctype html>
<!-- Made by docs/make_clinical_page.py from docs/explanation/clinical-use.md. -->
<html lang="en" data-theme="auto">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <meta name="color-scheme" content="light dark">
  <meta name="robots" content="noindex">
  <title>{title} · EMORL</title>
  <link rel="icon" href="icon.svg" type="image/svg+xml">
  <link rel="stylesheet" href="theme.css">
  <link rel="stylesheet" href="page.css">
  <link rel="stylesheet" href="reading.css">
</head>
<body>
  <main class="panel reading">
{body}
  </main>
</body>
</html>
"""


def rendered(source: str) -> str:
    """The page for a document in Markdown, whose first line is its title."""
    without_links = re.sub(r"\[([^\]]+)\]\((?!#)[^)]+\)", r"\1", source)
    title = without_links.splitlines()[0].removeprefix("# ")
    return SHELL.format(title=title, body=markdown.markdown(without_links, extensions=["tables"]))


if __name__ == "__main__":
    PAGE.write_text(rendered(SOURCE.read_text(encoding="utf-8")), encoding="utf-8")
