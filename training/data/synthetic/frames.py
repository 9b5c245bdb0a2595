"""Sentence frames of the synthetic grammar: how a client says a situation, and how each style answers it.

Slots: {cause} a clause, {second} another one, {feeling} an adjective, {likeness} "like ...", {want} a verb phrase,
{about} a noun phrase, {makes} "makes" or "make" after {about}, {when} "when" or "after", {need} what the feeling
points to, {hard} the domain's word for hard, {advice} a verb phrase.
In client frames they are in the client's person, in reply frames in the counselor's.
"""

from __future__ import annotations

from typing import Literal

Style = Literal["plain", "complex", "validation", "question", "advice", "brief"]
STYLES: tuple[Style, ...] = ("plain", "complex", "validation", "question", "advice", "brief")

# One frame may hold several sentences; the generator capitalises each.
CLIENT: tuple[str, ...] = (
    "I feel {feeling} because {cause}.",
    "I'm {feeling} because {cause}.",
    "I feel so {feeling} because {cause}.",
    "I've been feeling {feeling} because {cause}.",
    "{cause} and I feel {feeling}.",
    "{cause}, and I'm {feeling}.",
    "{cause}, so I feel {feeling}.",
    "{cause} and it makes me feel {feeling}.",
    "{cause}. I feel {feeling}.",
    "{cause}. I'm so {feeling}.",
    "{cause}. It leaves me {feeling}.",
    "{cause}. I just feel {feeling} all the time.",
    "I feel {feeling}. {cause}.",
    "I'm really {feeling}. {cause}.",
    "I've been {feeling} for {span}. {cause}.",
    "I am {feeling}, {cause}.",
    "{when} {cause}, I feel {feeling}.",
    "I get so {feeling} {when} {cause}.",
    "{cause} and {second}. I feel {feeling}.",
    "{cause}. {second}. I'm just {feeling}.",
    "{cause}, and {second}, and I feel {feeling}.",
    "I feel {likeness} because {cause}.",
    "{cause} and I feel {likeness}.",
    "{cause}. I feel {likeness}.",
    "I feel {likeness}. {cause}.",
    "I want to {want}, but I feel {likeness}.",
    "I feel {feeling} because of {about}.",
    "{about} {makes} me feel {feeling}.",
    "{about} {makes} me so {feeling}.",
    "{cause}.",
    "{cause}.",
    "{cause} and {second}.",
    "{cause}. {second}.",
    "{cause}, and {second}.",
    "I want to {want}, but {cause}.",
    "I want to {want} but {cause}.",
    "I'd like to {want}, but {cause}.",
    "I wish I could {want}, but {cause}.",
    "I'm trying to {want}, but {cause}.",
    "I keep trying to {want}. {cause}.",
    "{cause}. I want to {want}.",
    "{cause}. I just want to {want}.",
    "{cause} and I want to {want}.",
    "I want to {want}, but I feel {feeling}.",
    "I want to {want}. I'm just too {feeling}.",
    "I know I should {want}, but {cause}.",
    "I need to {want}.",
    "I want to {want}.",
    "I want to {want}, but {cause} and I feel {feeling}.",
    "{cause}. I want to {want}, but I feel {feeling}.",
    "I feel {feeling} because {cause}. I want to {want}.",
)  # fmt: skip

CLIENT_GOOD: tuple[str, ...] = (
    "{cause} and I feel {feeling}.",
    "{cause}, and I'm {feeling}.",
    "{cause}. I feel {feeling}.",
    "I feel {feeling} because {cause}.",
    "I'm so {feeling}. {cause}.",
    "{cause}.",
    "{cause}. I want to {want}.",
)

# A style answers with one of its frames that use the most of what the client gave (see `synthetic.reply`).
REPLIES: dict[Style, tuple[str, ...]] = {
    "plain": (
        "you feel {feeling} because {cause}.",
        "you feel {feeling} because {cause}.",
        "you feel {likeness} because {cause}.",
        "it sounds like you want to {want}, but you feel {likeness}.",
        "it sounds like {cause} and {second}.",
        "it sounds like {cause}.",
        "it sounds like you feel {feeling} because of {about}.",
        "it sounds like you want to {want}, but {cause}.",
        "it sounds like you want to {want}, but you feel {feeling}.",
        "it sounds like you want to {want}.",
    ),
    "complex": (
        "{cause}, and that leaves you {feeling}. You need {need}.",
        "{cause}, and that makes you feel {likeness}.",
        "part of you wants to {want}, and part of you feels {likeness}.",
        "{cause}, and {second}. It all leaves you {feeling}.",
        "{cause}, and on top of that {second}.",
        "{about} {makes} you feel {feeling}, and you need {need}.",
        "part of you wants to {want}, and yet {cause}.",
        "part of you wants to {want}, and part of you feels {feeling}.",
        "part of you wants to {want}, and yet {cause}, and that leaves you {feeling}.",
        "{cause}, and that weighs on you.",
        "part of you wants to {want}, and that matters to you.",
    ),
    "validation": (
        "it makes sense that you feel {feeling} {when} {cause}.",
        "I'm sorry. Anyone would feel {feeling} {when} {cause}.",
        "that sounds so hard. Of course you feel {feeling} because of {about}.",
        "it makes sense that you feel {likeness} {when} {cause}.",
        "I can hear how much you want to {want}. I'm sorry that you feel {likeness}.",
        "I'm sorry. It must be {hard} {when} {cause}.",
        "I can hear how much you want to {want}. It must be {hard} {when} {cause}.",
        "I can hear how much you want to {want}. It makes sense that you feel {feeling}.",
        "I can hear how much you want to {want}. That takes courage.",
    ),
    "question": (
        "what happens {when} {cause}?",
        "how long have you felt {likeness} because of {about}?",
        "how long have you felt {feeling} because of {about}?",
        "what would help you {want}?",
        "what is the hardest part about {about}?",
    ),
    "advice": (
        "maybe you could {advice}.",
        "try to {advice}.",
        "maybe you could {advice}. That may help with {about}.",
        "try to {advice}. It might help with {about}.",
    ),
    "brief": (
        "you feel {likeness} because of {about}.",
        "you feel {likeness} right now.",
        "you feel {feeling} because of {about}.",
        "you are {feeling} because of {about}.",
        "you struggle with {about}.",
        "things are hard with {about}.",
        "you want to {want}.",
        "you feel {feeling} right now.",
    ),
}

REPLIES_GOOD: dict[Style, tuple[str, ...]] = {
    "plain": (
        "you feel {feeling} because {cause}.",
        "it sounds like {cause}.",
    ),
    "complex": (
        "{cause}, and that leaves you {feeling}. You want {need}.",
        "{cause}, and that means a lot to you.",
        "{cause}, and now part of you wants to {want}.",
    ),
    "validation": (
        "that is wonderful. You can be {feeling} that {cause}.",
        "that is wonderful. It must feel good that {cause}.",
    ),
    "question": (
        "what helped you with {about}?",
        "what comes next after {about}?",
    ),
    "advice": (
        "keep going, and be kind to yourself.",
        "maybe you could tell someone about {about}.",
    ),
    "brief": (
        "you feel {feeling} because of {about}.",
        "things go well with {about}.",
    ),
}
