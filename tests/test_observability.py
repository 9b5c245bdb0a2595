"""Dashboard, alerts and docs/operations.md ask for and list what the server really has."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.deployment import ALERTS, DASHBOARD, DOCKER, KUBERNETES, ROOT, exported, families, read
from tests.reference import DOCUMENT, rewritten

OPERATIONS = ROOT / "docs" / "operations.md"


ASKING = [
    DASHBOARD,
    ALERTS,
    DOCKER / "prometheus" / "alerts_test.yml",
    KUBERNETES / "base" / "hpa.yaml",
    *sorted((KUBERNETES / "monitoring").glob("*.yaml")),
]


@pytest.mark.parametrize("file", ASKING, ids=lambda path: path.name)
def test_every_metric_that_is_asked_for_exists(file: Path) -> None:
    asked = set(re.findall(r"\bemorl_[a-z_]+\b", file.read_text(encoding="utf-8")))
    assert asked <= exported(), asked - exported()


def test_the_dashboard_shows_every_metric() -> None:
    dashboard = DASHBOARD.read_text(encoding="utf-8")
    own = {name for name in families() if not name.startswith("vllm:")}  # those repeat what others say, by another name
    assert {name for name in own if name not in dashboard} == set()


def test_panels_of_the_dashboard_do_not_overlap_and_say_what_they_show() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["type"] == "row" or panel["description"], panel["title"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_operations_says_what_to_do_about_every_alert() -> None:
    headings = set(re.findall(r"^### (Emorl\w+)$", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE))
    rules = [rule for group in read(ALERTS)["groups"] for rule in group["rules"]]
    assert headings == {rule["alert"] for rule in rules}


def test_the_reference_lists_what_the_code_has() -> None:
    """Settings, routes and metrics. When this fails: `python -m tests.reference`, and read what it changed."""
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == rewritten(text)


def test_metrics_named_in_operations_exist() -> None:
    named = set(re.findall(r"\bemorl_(?!core|cli)[a-z_]+\b", OPERATIONS.read_text(encoding="utf-8")))
    assert named <= exported() | families(), named - exported() - families()
