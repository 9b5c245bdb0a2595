"""docs/reference.md is made of this: `python -m tests.reference` writes the tables anew; a test fails when they are stale."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from emorl_core.fake import fake_ensemble
from server.app import create_app
from server.door.auth import ADMIN_PREFIX, METRICS_PATH, OPEN_PATHS
from server.settings import Settings
from server.watch.metrics import EngineReading, Metrics

DOCUMENT = Path(__file__).parent.parent / "docs" / "reference.md"


def settings() -> Iterator[str]:
    yield "| setting | default | meaning |"
    yield "|---|---|---|"
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, (), "") else f"`{str(field.default).removesuffix('.0')}`"
        yield f"| `{name}` | {default.replace('True', 'true').replace('False', 'false')} | {field.description} |"


def routes() -> Iterator[str]:
    yield "| route | key | what |"
    yield "|---|---|---|"
    for path, methods in create_app(Settings(), fake_ensemble()).openapi()["paths"].items():
        for method, operation in methods.items():
            text = " ".join(operation["description"].split())
            yield f"| `{method.upper()} {path}` | {_key(path)} | {text} |"
    yield "| `GET /` | none | The page to steer with; its files lie under /playground/ (setting `playground`). |"
    yield "| `GET /openapi.json` | API | This interface as an OpenAPI document, with examples. |"


def _key(path: str) -> str:
    if path.startswith(ADMIN_PREFIX):
        return "admin"
    if path == METRICS_PATH:
        return "API where `metrics_key_required` is on"
    return "none" if path in OPEN_PATHS else "API"


def metrics() -> Iterator[str]:
    made = Metrics(lambda: EngineReading(info={"version": "", "bundle": "", "device": "", "dtype": ""}), ["/generate"])
    made.know_objectives(["an objective"])
    yield "| metric | kind | meaning |"
    yield "|---|---|---|"
    for family in sorted(made.registry.collect(), key=lambda family: family.name):
        labels = {name for sample in family.samples for name in sample.labels} - {"le"}
        shown = f"{family.name}{'_total' if family.type == 'counter' else ''}"
        shown += f"{{{', '.join(sorted(labels))}}}" if labels else ""
        yield f"| `{shown}` | {family.type} | {family.documentation} |"


TABLES = {"settings": settings, "routes": routes, "metrics": metrics}


def rewritten(text: str) -> str:
    """The document with every table as the code has it now."""
    for name, rows in TABLES.items():
        table = "\n".join(rows())
        pattern = rf"(<!-- {name} -->\n).*?(\n<!-- end -->)"
        text, found = re.subn(pattern, lambda part: part[1] + table + part[2], text, flags=re.DOTALL)  # noqa: B023
        assert found == 1, f"{DOCUMENT.name} must have one <!-- {name} --> … <!-- end -->"
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(rewritten(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
