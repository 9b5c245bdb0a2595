"""Loads the policy that the setting `policy` names."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from emorl_core.errors import shown
from emorl_core.files.reading import Unreadable
from emorl_core.policy import DoNotDraft
from emorl_core.text.chat import Message
from server.policy.patterns import PatternList
from server.settings import Settings, SettingsError

CRISIS_CUES = "crisis-cues"
Policy = Callable[[Sequence[Message]], DoNotDraft | None]
_SHIPPED = {CRISIS_CUES: Path(__file__).parent / "crisis-cues.yaml"}
_DOTTED = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*)")


def load_policy(settings: Settings) -> Policy | None:
    """A list of patterns, by the name of a shipped list or by its file, or a callable `package.module:function`. It is
    code that runs in this process, so only a server's settings may name it, not a bundle.

    Raises:
        SettingsError: it is neither, or cannot be used.
    """
    named = settings.policy
    if named is None:
        return None
    callable_ = _DOTTED.fullmatch(named)
    if callable_ is not None:
        return _imported(named, callable_[1], callable_[2])
    try:
        return PatternList(_SHIPPED.get(named, Path(named)), settings.policy_timeout_s)
    except Unreadable as error:
        raise SettingsError(
            f"policy is {shown(named)}: {error.message}; allowed: {CRISIS_CUES}, a YAML file of patterns, or"
            " package.module:function",
            param="policy",
        ) from None


def _imported(named: str, module_name: str, name: str) -> Policy:
    def refused(why: str) -> SettingsError:
        return SettingsError(f"policy is {named!r}: {why}", param="policy")

    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except Exception as error:
        raise refused(f"{module_name} cannot be imported ({type(error).__name__})") from error
    if not callable(found) or inspect.isclass(found):
        raise refused(f"{module_name} has no function {name!r}")
    if inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(getattr(found, "__call__", None)):  # noqa: B004
        raise refused(f"{name!r} is async; allowed: a plain function, which is called on a thread of its own")
    policy: Policy = found
    return policy
