"""Word lists of the lexical scorers: general English, written for them, and not taken from a training corpus."""

from __future__ import annotations

import re


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


FIRST_PERSON = _set("""
i i'm i've i'd i'll me my mine myself we us our ours ourselves we're we've we'd we'll im ive
""")
SECOND_PERSON = _set("you you're you've you'd you'll your yours yourself yourselves")

# Said by the client -> said about the client.
FLIP: dict[str, str] = {
    "i": "you", "me": "you", "my": "your", "mine": "yours", "myself": "yourself", "am": "are", "i'm": "you're",
    "i've": "you've", "i'd": "you'd", "i'll": "you'll", "we": "you", "us": "you", "our": "your", "ours": "yours",
    "ourselves": "yourselves", "we're": "you're", "we've": "you've", "we'd": "you'd", "we'll": "you'll",
}  # fmt: skip

FUNCTION = (
    FIRST_PERSON
    | SECOND_PERSON
    | _set("""
a an the this that these those and or but so because as if when while after before until since though although
than then of in on at to for from with without by about into over under up down out off through between around
against during he him his she her hers it its it's they them their theirs who whom whose which what where why
how there here he's she's they're that's there's what's who's let's be is are was were been being am do does did
done doing have has had having can could will would shall should may might must not no nor never n't don't
doesn't didn't isn't aren't wasn't weren't can't couldn't won't wouldn't shouldn't haven't hasn't hadn't ain't
cannot just very really so too also even still only again always ever already yet quite rather much many more
most some any all both each every other another such own same few lot bit kind sort way else maybe perhaps yes
no well oh okay ok right now
""")
)

# Words that frame a reflection. They count neither as the client's words nor as new ones.
FRAME = _set("""
feel feels feeling feelings felt sound sounds seem seems seeming hear hearing sense understand like want wants
wanted need needs part matter matters mean means leave leaves leaving make makes making made get gets getting
got keep keeps thing things time know think say saying said tell telling told something anything everything
nothing somehow top yet hard difficult tough weigh weighs lately
""")

QUESTION_START = _set("what how why when where who which do does did is are can could would will have has should")

# Advice and instructions: the counselor's agenda instead of the client's meaning.
ADVICE = re.compile(
    r"\byou (?:should|could|ought to|have to|must|might want to|had better|can always|can try)\b"
    r"|\byou need to (?!feel|be |know|forgive|keep)"  # these name what the client lacks
    r"|\byou'd better\b|\bwhy (?:don't|not) you\b|\b(?:have you|you) (?:tried|considered|thought about)\b"
    r"|\bhow about\b|\bwhat if you\b|\bi (?:suggest|recommend|advise|would advise|think you)\b|\bmy advice\b"
    r"|\blet's\b|\bit (?:may|might|could|would) help\b|\bthat (?:may|might|could|would) help\b|\btry to\b"
    r"|^(?:try|just|maybe|don't|stop|start|go|get|take|talk|make|find|consider|keep|be|do|give|ask|tell|use|put)\b"
    r"|[.!?;] +(?:try|just|maybe|don't|stop|start|go|take|talk|find|consider|be)\b"
)

# Phrases that dismiss the client's feelings.
DISMISSAL = re.compile(
    r"\bcalm down\b|\bget over it\b|\bdon't (?:worry|be (?:sad|silly|upset|afraid|angry))\b|\bat least\b"
    r"|\bit could be worse\b"
    r"|\bcheer up\b|\bno big deal\b|\bnot (?:that|so) bad\b|\bstop (?:whining|complaining|worrying)\b|\bman up\b"
    r"|\bjust relax\b|\byou'll be fine\b|\beveryone has problems\b|\byour own fault\b|\boverreact\w*\b|\bwho cares\b"
)

# Ways to validate a feeling; each kind counts once.
VALIDATION: dict[str, re.Pattern[str]] = {
    "makes sense": re.compile(r"\bmakes? (?:\w+ )?sense\b|\bunderstandabl[ey]\b|\bno wonder\b|\bof course\b"
                              r"|\bonly natural\b|\banyone (?:would|might)\b|\bwho wouldn't\b|\bhave every right\b"
                              r"|\bit's (?:okay|ok) to\b"),
    "heard": re.compile(r"\bi(?: can| do)? (?:hear|see|understand|sense|imagine)\b|\bi'm listening\b"
                        r"|\bnot alone\b|\bthank you for (?:sharing|telling)\b"),
    "hard": re.compile(r"\b(?:sounds?|must (?:be|feel|have been)|seems?|is|has been|that's|it's|be)"
                       r"(?: \w+){0,2} (?:hard|tough|difficult|painful|heavy|rough|awful|exhausting|frustrating|scary"
                       r"|lonely|overwhelming|stressful|upsetting|draining)\b"),
    "sorry": re.compile(r"\b(?:i'm|i am) (?:so |really |very )?sorry\b"),
    "care": re.compile(r"\bi hope (?:you|things|it)\b|\bwish you\b|\bhugs?\b|\bstay strong\b|\bi feel for you\b"
                       r"|\bhere (?:for you|if you)\b|\bthinking of you\b|\bbe kind to yourself\b"),
    "strength": re.compile(r"\btakes (?:a lot of |real |so much )?(?:courage|strength|work|effort)\b|\bso brave\b"),
}  # fmt: skip
GLADNESS = re.compile(
    r"\b(?:wonderful|great|good|lovely|amazing|fantastic) (?:news|to hear)\b|\bthat(?:'s| is) (?:so )?"
    r"(?:wonderful|great|good|lovely|amazing|fantastic)\b|\bmust feel (?:so )?(?:good|great|wonderful)\b"
    r"|\bglad\b|\bhappy for you\b|\bproud of you\b|\bcongratulations\b"
)

# Feeling words by family. Words of one family count as the same feeling.
_FAMILIES = """
tired: tired exhausted drained weary fatigued sleepless sleepy worn-out burned burnt burnout run-down worn
    exhausting draining tiring
overwhelmed: overwhelmed stressed pressured pressure swamped tense restless stress overloaded overwhelming
    stressful stretched edge burdened
afraid: scared afraid anxious worried nervous uneasy frightened terrified panicky panic fear fearful anxiety
    worry scary dread paranoid insecure frightening scares
angry: angry furious frustrated annoyed irritated resentful bitter mad fed-up anger rage pissed frustrating
    frustration hate fed irritating annoying
sad: sad down low heartbroken empty miserable unhappy depressed tearful depression grief grieving sadness cry
    crying devastated numb upset gloomy mourning blue
lonely: lonely alone isolated left-out forgotten unwanted invisible loneliness abandoned excluded disconnected
    cut-off
ashamed: ashamed embarrassed worthless useless weak shame humiliated inadequate failure embarrassing stupid
    inferior disappointed small
guilty: guilty guilt remorseful selfish regret torn regretful sorry
stuck: stuck trapped lost hopeless helpless confused unsure discouraged defeated powerless desperate uncertain
    conflicted ambivalent despair unmotivated
hurt: hurt rejected unloved betrayed let-down ignored unappreciated misunderstood judged hurtful wounded
    criticized disrespected betrayal
jealous: jealous envious jealousy envy
glad: happy glad joyful good great excited relieved wonderful cheerful content pleased delighted thrilled relief
    joy better calm peaceful
hopeful: hopeful motivated determined ready confident proud optimistic encouraged inspired hope grateful
    thankful strong
"""
POSITIVE_FAMILIES = frozenset({"glad", "hopeful"})
# Feeling words that often mean something else ("down the road"): they count only near a feeling verb.
AMBIGUOUS = _set("""
down low good great better small edge fed mad lost sorry ready strong content blue worn burned burnt alone
stretched failure pressure hate weak stupid hope run-down forgotten left-out cut-off hurt empty torn calm
""")
FEELING_VERBS = _set("""
feel feels feeling felt am are is was were i'm you're he's she's be been being get gets getting got make makes
made leave leaves left so very too really seem seems sound sounds become becoming
""")
FEEL = _set("feel feels felt")
INTENSIFIERS = _set("so very really too quite rather pretty a bit little deeply truly also still just")
# Words after "feel" that may introduce something other than a feeling: "feel like a fool", "feel that you ...".
AFTER_FEEL = _set("like as that this the about under how it your you better worse safe something nothing anything")
NEGATIONS = _set("""
not no never don't doesn't didn't isn't aren't wasn't weren't can't couldn't won't wouldn't without hardly
""")

_PHRASES = {
    "worn out": "worn-out", "run down": "run-down", "burned out": "burned", "fed up": "fed-up", "left out": "left-out",
    "cut off": "cut-off", "let down": "let-down", "on edge": "edge", "stretched thin": "stretched",
}  # fmt: skip
_PHRASE = re.compile(r"\b(?:" + "|".join(_PHRASES) + r")\b")

_IRREGULAR: dict[str, str] = {
    "felt": "feel", "kept": "keep", "lost": "los", "told": "tell", "said": "say", "went": "go", "gone": "go",
    "done": "do", "made": "mak", "took": "tak", "taken": "tak", "got": "get", "gotten": "get", "gave": "giv",
    "given": "giv", "thought": "think", "knew": "know", "known": "know", "left": "leav", "came": "com",
    "saw": "see", "seen": "see", "found": "find", "ate": "eat", "eaten": "eat", "drank": "drink",
    "drunk": "drink", "slept": "sleep", "spent": "spend", "broke": "break", "broken": "break", "bought": "buy",
    "brought": "bring", "fought": "fight", "began": "begin", "begun": "begin", "ran": "run", "fell": "fall",
    "fallen": "fall", "spoke": "speak", "wrote": "writ", "hid": "hid", "children": "child", "kids": "kid",
    "wives": "wif", "lives": "lif", "died": "die", "dying": "die", "lying": "lie", "die": "die", "lie": "lie",
}  # fmt: skip


def join_phrases(text: str) -> str:
    """Join feelings of two words: "worn out" -> "worn-out"."""
    return _PHRASE.sub(lambda match: _PHRASES[match.group()], text)


def stem(word: str) -> str:
    """A light stemmer: it gives "drinking" and "drinks" the same stem, and seldom merges different words."""
    word = word.removesuffix("'s")
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    for ending, kept in (("ies", "y"), ("ied", "y"), ("ing", ""), ("ed", ""), ("ly", ""), ("es", ""), ("s", "")):
        shortest = 5 if ending == "ly" else 3  # "quickly", but not "family"
        if word.endswith(ending) and len(word) - len(ending) >= shortest and not word.endswith(("ss", "us")):
            root = word[: len(word) - len(ending)] + kept
            # "stopping" -> "stop", but "telling" -> "tell".
            if ending in ("ing", "ed") and len(root) > 3 and root[-1] == root[-2] and root[-1] not in "lsz":
                root = root[:-1]
            return root.removesuffix("e")
    return word.removesuffix("e") if len(word) > 3 else word


FAMILY_OF: dict[str, str] = {}
for _line in _FAMILIES.replace("\n    ", " ").strip().splitlines():
    _name, _, _members = _line.partition(": ")
    FAMILY_OF.update(dict.fromkeys(_members.split(), _name))
