"""`kv_cache_bytes` over HTTP: what can never fit is refused in one line, what fits is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from emorl_core.ensemble import Ensemble
from emorl_core.errors import InvalidRequest
from emorl_core.fake import fake_ensemble
from emorl_core.types import Request, Sampling
from server.serving.deployment import load
from server.settings import Settings
from tests.builders import tiny_t5_bundle
from tests.http.harness import PROMPT, error_of, idle, live, wait_until

BOUND = 60_000


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/generate", {"prompt": PROMPT}),
        ("/generate", {"prompt": PROMPT, "stream": True}),
        ("/sweep", {"prompts": [PROMPT], "resolution": 2}),
        ("/drafts", {"prompt": PROMPT}),
    ],
)
def test_what_can_never_fit_is_refused_naming_the_limit(route: str, body: dict[str, Any]) -> None:
    with (
        live(ensemble=fake_ensemble(kv_cache_bytes=BOUND)) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        answer = client.post(route, json=body | {"max_new_tokens": 1000})
        assert answer.status_code == 422
        error = error_of(answer)
        assert error["message"].endswith(f"bytes; allowed: up to {BOUND} (kv_cache_bytes)")
        assert error["param"] == "max_new_tokens"
        wait_until(lambda: idle(server), "its permit is back")
        assert client.post(route, json=body | {"max_new_tokens": 4}).status_code == 200


def test_the_settings_reach_the_engine(tmp_path: Path) -> None:
    bundle = tiny_t5_bundle(tmp_path)
    bounds = {"kv_cache_bytes": 300_000, "prefill_tokens": 7}
    ensemble = load(Settings(bundle=str(bundle), engine="thread", prompt_lookup="on", **bounds))
    assert isinstance(ensemble, Ensemble)
    engine = ensemble.engine
    assert engine.runner.reader.most_tokens == 7
    bias = ((5, 60.0),)
    engine.add(Request("r", (5, 5, 1), (1.0, 0.0, 0.0, 0.0), Sampling(max_new_tokens=6, logit_bias=bias)))
    while engine.has_work:
        engine.step()
    assert engine.stats.accepted_tokens > 0
    request = Request("r", (5, 1), (1.0, 0.0, 0.0, 0.0), Sampling(max_new_tokens=4000))
    with pytest.raises(InvalidRequest, match="kv_cache_bytes"):
        engine.add(request)
