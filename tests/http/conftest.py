"""One shared server for tests that only ask; tests that break things start their own."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.http.harness import Live, live


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live() as running:
        yield running


@pytest.fixture
def client(server: Live) -> Iterator[httpx.Client]:
    with server.client() as each:
        yield each
