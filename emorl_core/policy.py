"""The answers of a policy. A policy is the operator's callable `(messages) -> DoNotDraft | None`.

`messages` are a tuple of `emorl_core.text.chat.Message`, oldest first: a prompt is one user message. `None` lets the
request pass. Which policy a server asks is its setting `policy`.
"""

from __future__ import annotations

from dataclasses import dataclass

from emorl_core.errors import InvalidRequest, shown

# Few and fixed, since reasons appear in metrics and logs, which must not contain a client's words.
REASONS = ("crisis", "harm_to_others", "abuse", "medical", "legal", "minor", "off_topic", "other")
FAILED = "policy_failed"  # used by the server if the policy did not answer
MAX_NOTICE = 2000  # characters


@dataclass(frozen=True, slots=True)
class DoNotDraft:
    """No draft for these messages. `notice`: the operator's text for the caller. Raises `InvalidRequest` for a reason
    that is not in `REASONS`, and for a notice that is empty, too long or not a text."""

    reason: str
    notice: str

    def __post_init__(self) -> None:
        if self.reason not in REASONS:
            raise InvalidRequest(f"reason is {shown(self.reason)}; allowed: {', '.join(REASONS)}", param="reason")
        if not isinstance(self.notice, str) or not 0 < len(self.notice.strip()) <= MAX_NOTICE:
            raise InvalidRequest(f"notice: allowed: a text of 1 to {MAX_NOTICE} characters", param="notice")
