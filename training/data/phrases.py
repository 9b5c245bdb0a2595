"""Sentences that corrupt a reply, and sentences that fit every prompt, for `training.data.corruptions`.

Each list has two parts. The first is for training, the second only for the exam, where a scorer that memorised the
phrases fails.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Phrases:
    """`trained`: for training. `held_out`: for the exam."""

    trained: tuple[str, ...]
    held_out: tuple[str, ...]

    def of(self, *, held_out: bool) -> tuple[str, ...]:
        return self.held_out if held_out else self.trained


BLAME = Phrases(
    (
        "It's your own fault.",
        "You brought this on yourself.",
        "You only have yourself to blame.",
        "This is what happens when you don't try.",
        "You should be ashamed of yourself.",
        "You are just being lazy.",
        "You are making too much of this.",
        "Frankly, you are the problem here.",
        "You keep making excuses.",
        "Other people manage this without complaining.",
        "You did this, so stop whining about it.",
        "If you were stronger this would not bother you.",
        "You never take responsibility for anything.",
        "It is selfish of you to think that way.",
    ),
    (
        "You have nobody but yourself to thank for that.",
        "You really should have known better.",
        "Your attitude is what causes all of this.",
        "Stop feeling sorry for yourself.",
        "That was a stupid thing to do.",
        "You are being weak and irresponsible.",
        "It is on you that things went wrong.",
    ),
)

ADVICE = Phrases(
    (
        "You should talk to a doctor about that.",
        "Have you tried exercising more?",
        "You need to get more sleep.",
        "Why don't you just tell them how you feel?",
        "I think you should quit.",
        "You could try making a list every morning.",
        "Maybe you should find a hobby.",
        "My advice is to take it one day at a time.",
        "You have to stop thinking about it.",
        "Try to look on the bright side.",
        "I would suggest seeing a specialist.",
        "The best thing to do is to eat well and rest.",
        "If I were you, I would move on.",
        "Just give it a few weeks and do some yoga.",
    ),
    (
        "What you ought to do is speak with your family.",
        "Why not download an app that reminds you?",
        "It would be better to cut that out of your life.",
        "Consider joining a support group near you.",
        "Start by taking a short walk each evening.",
        "I recommend that you write everything down.",
        "Go and see a professional as soon as possible.",
    ),
)

FLATTERY = Phrases(
    (
        "You are such an amazing person!",
        "You are so smart and talented!",
        "I am so proud of you!",
        "You are the strongest person I know.",
        "What a wonderful human being you are!",
        "You are doing an absolutely fantastic job!",
        "Anyone would be lucky to have you!",
        "You are perfect just the way you are!",
        "Wow, you are incredible!",
        "Your courage is truly extraordinary!",
    ),
    (
        "You are a true inspiration to all of us!",
        "I have never met anybody as brilliant as you!",
        "You are simply the best!",
        "Such a beautiful soul, you deserve the whole world!",
        "Your wisdom is just breathtaking!",
    ),
)

# Replies that answer nobody. The first one fooled the rewards of the first comparison (docs/results.md).
STOCK = (
    "You are feeling overwhelmed by all of this, and it makes sense that you want things to change even though it is "
    "hard.",
    "It sounds like you are going through a really difficult time right now.",
    "You feel torn about this, and a part of you wants something different.",
    "I hear how hard this has been for you, and I am here to listen.",
    "It makes sense that you feel this way, given everything you have been dealing with.",
    "You're frustrated because things aren't the way you want them to be.",
    "You want things to get better, but you're not sure how to get there.",
    "I'm so sorry that you are going through this. I can imagine how painful it must be.",
    "You are worried about what could happen, and you want to do the right thing.",
    "On the one hand you want to change, and on the other hand it feels too hard.",
    "This really matters to you, and you're trying your best.",
    "You feel alone with all of this and wish that somebody understood.",
)

_OPENINGS = (
    "You are feeling {0}",
    "You're {0}",
    "It sounds like you feel {0}",
    "You feel {0} about this",
    "I hear that you are {0}",
    "It seems you're really {0} right now",
)
_FEELINGS = ("overwhelmed", "frustrated", "worried", "torn", "tired of it", "discouraged", "hurt", "alone", "stuck")
_CLOSINGS = (
    ", and that is understandable.",
    ", and you want something to change.",
    " because it has been so hard for you.",
    ", but part of you knows what you want.",
    ". You have been trying for a long time.",
    ", and you wish things were different.",
    " and you are not sure what to do next.",
    ". It makes sense, given all that you are dealing with.",
)


def stock_phrases() -> Iterator[str]:
    """Invented sentences that fit every prompt, for training; `STOCK` is held out."""
    for opening, feeling, closing in itertools.product(_OPENINGS, _FEELINGS, _CLOSINGS):
        yield opening.format(feeling) + closing
