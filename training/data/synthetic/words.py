"""The word sets of the synthetic grammar: people, things, feelings. A word fits every template that names its set."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


# Slot -> its words. `{kid.she}`, `{kid.her}`, `{kid.him}` in a template are the pronouns of the person drawn for {kid}.
SETS: dict[str, tuple[str, ...]] = {
    "boss": _words("boss, manager, supervisor, team leader, director"),
    "coworker": _words("coworker, colleague, teammate, office mate, assistant"),
    "teacher": _words("teacher, tutor, professor, coach, advisor"),
    "kid": _words("son, daughter, oldest son, oldest daughter, youngest son, youngest daughter, stepson, stepdaughter"),
    "partner": _words("husband, wife, partner, boyfriend, girlfriend"),
    "parent": _words("mother, father, mom, dad, stepmother, stepfather"),
    "elder": _words("mother, father, mom, dad, grandmother, grandfather, aunt, uncle"),
    "sibling": _words("sister, brother, twin sister, twin brother, older sister, younger brother, cousin"),
    "friend": _words("friend, best friend, old friend, roommate, neighbor, classmate"),
    "family": _words(
        "mother, father, mom, dad, sister, brother, wife, husband, son, daughter, uncle, aunt, cousin,partner"
    ),
    "pet": _words("dog, cat, old dog, old cat, horse, rabbit, parrot"),
    "name": _words(
        "Anna, Carla, Emma, Grace, Irene, Karen, Maria, Nina, Rosa, Tara, Wendy, Laura, Sarah, Linda, Susan,"
        "Lisa, Julia,"
        "Alice, Ben, David, Frank, Henry, Jack, Leo, Omar, Paul, Sam, Victor, Mark, Peter, Tom, James,"
        "Robert, Kevin, Daniel"
    ),
    "work": _words(
        "reports, orders, emails, calls, deadlines, meetings, bills, customers, numbers, messages, invoices,shifts"
    ),
    "hours": _words("shifts, hours, plans, projects, tasks, duties, targets, days off"),
    "exam": _words("exams, finals, tests, essays, classes, assignments, readings, lectures, papers, lessons"),
    "subject": _words(
        "math, chemistry, physics, biology, history, nursing, law, English, statistics, accounting, writing"
    ),
    "drink": _words("beer, wine, whiskey, vodka, liquor, alcohol, rum, gin"),
    "smoke": _words("cigarettes, vaping, smoking, nicotine, weed"),
    "sport": _words("running, swimming, walking, yoga, cycling, hiking, dancing, tennis, soccer, stretching, climbing"),
    "food": _words(
        "sugar, junk food, chips, chocolate, sweets, fast food, bread, candy, soda, ice cream, cookies, pizza"
    ),
    "pain": _words(
        "back pain, headaches, migraines, diabetes, asthma, arthritis, knee pain, high blood pressure,allergies"
    ),
    "body": _words("back, knee, heart, stomach, shoulder, hip, neck, chest, leg, foot"),
    "bill": _words(
        "rent, bills, mortgage, loans, car payment, credit cards, taxes, tuition, groceries, insurance, debts"
    ),
    "screen": _words("phone, computer, video games, tablet, social media, television, news"),
    "place": _words("house, apartment, room, kitchen, office, garage, city, town, neighborhood, building"),
    "thing": _words(
        "money, dishes, chores, car, laundry, garden, holidays, wedding, weather, past, future, church,"
        "furniture, dinner,"
        "weekend, vacation, computer, keys, letters, photos, party, birthday, trip, visit, school, kitchen,"
        "accident, news,"
        "test results, appointment, interview, paperwork, house, budget, phone, noise, schedule, rules, plan, decision,"
        "mistake, promise, argument, secret, lie, rumor, inheritance, divorce, lawsuit, visa, license, roof, fire, war"
    ),
    "object": _words(
        "car, house, garden, furniture, piano, boat, bike, camera, watch, tools, books, records, ring, letters, photos,"
        "clothes, chair, table, shoes, coat, pictures, toys, lamp, bed, truck, land, farm"
    ),
    "chore": _words(
        "dishes, laundry, cooking, cleaning, shopping, paperwork, taxes, garden, driving, planning, mail,"
        "repairs, dinner"
    ),
    "event": _words(
        "party, wedding, dinner, trip, game, concert, picnic, interview, appointment, funeral, exam, meeting,play"
    ),
    "trait": _words(
        "accent, clothes, hair, weight, job, voice, cooking, family, car, shoes, glasses, teeth, name,religion"
    ),
    "project": _words("work, ideas, report, project, results, plan, presentation, design"),
    "essay": _words("essay, paper, thesis, homework, project, report, application, speech"),
    "day": _words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"),
    "season": _words("spring, summer, fall, winter, Christmas, January, March, April, June, July, October, November"),
    "span": _words(
        "weeks, months, years, a long time, three weeks, two months, six months, a whole year, several days"
    ),
    "lately": _words(
        "lately, these days, right now, at the moment, this year, this month, this week, all the time, every day, again"
    ),
    "night": _words("night, evening, morning, day, weekend, afternoon"),
    "hour": _words("two, three, four, five"),
    "few": _words("three, four, five, a few, a couple of"),
    "verb": _words(
        "act, agree, answer, apologize, argue, ask, bake, beg, bike, breathe, budget, calm down, camp, catch up,"
        "change, chat, cheer up, clean, clean up, climb, compete, complain, concentrate, cook, cry, dance, draw,"
        "dream, drink, drive, eat, exercise, fight, fish, fit in, fly, focus, forget, forgive, garden, give,"
        "give up, go out, grow, grow up, guess, hang out, heal, help, hide, hike, hope, hurry, jog, joke, jump,"
        "keep up, kiss, knit, laugh, lead, learn, leave, let go, lie, lift, listen, meditate, move, move on, nap,"
        "open up, paint, party, plan, play, practice, pray, pretend, read, relax, remember, rest, ride, run, save,"
        "scream, settle down, share, shop, shout, show up, sing, sit still, sleep, slow down, smile, smoke, snack,"
        "speak, speak up, spend, stand up, stay, stop, stretch, study, succeed, swim, talk, teach, think, travel,"
        "trust, try, volunteer, wait, wake up, walk, wash, win, wonder, work, work out, worry, write, yell"
    ),
    "noun": _words(
        "album, bag, ball, bank card, basket, bell, bench, bicycle, bike, blanket, boat, book, bottle, bowl, box,"
        "bracelet, broom, brush, bucket, bus pass, cabinet, calendar, camera, candle, car, carpet, chair, clock,"
        "closet, coat, computer, cup, curtain, desk, diary, dictionary, dress, drill, drum, envelope, fan, file,"
        "flower, flute, fridge, glove, guitar, hammer, hat, hearing aid, heater, helmet, jacket, jar, journal,"
        "kettle, key, knife, ladder, lamp, laptop, letter, library card, lighter, lock, magazine, mailbox, map,"
        "mattress, medal, microwave, mirror, motorcycle, necklace, newspaper, notebook, oven, package, painting,"
        "pan, passport, pen, pencil, phone, piano, pillow, plant, plate, pot, printer, purse, radio, recipe, ring,"
        "rug, sandwich, scarf, scooter, sewing machine, sheet, shelf, shirt, skirt, sofa, spoon, stamp, statue,"
        "stove, suit, suitcase, sweater, table, tank, telescope, tent, ticket, tool box, towel, toy, train pass,"
        "trophy, truck, umbrella, uniform, van, vase, violin, wallet, wardrobe, washing machine, watch, wheelchair"
    ),
    "part": _words(
        "basement, bathroom, bridge, church, contract, country, culture, door, engine, farm, fence, fireplace,"
        "floor, food, future, garden, gate, government, hallway, hospital, job, kitchen, language, law, lawn,"
        "lesson, library, list, market, marriage, meeting, memory, menu, neighborhood, office, park, past, path,"
        "plan, pool, project, question, roof, school, shop, song, station, story, street, system, traffic, village,"
        "wall, water, weather, website, window, winter, world, yard"
    ),
    "adjective": _words(
        "beautiful, big, black, blue, bright, broken, brown, cheap, clean, cold, damp, dark, dirty, dry, dusty,"
        "empty, expensive, fancy, favorite, fragile, full, golden, good, green, grey, heavy, huge, large, little,"
        "long, modern, narrow, new, nice, noisy, old, ordinary, perfect, pink, plain, precious, pretty, red, round,"
        "rusty, secret, shabby, sharp, short, silver, simple, small, soft, special, strange, thick, thin, tiny,"
        "ugly, useful, useless, warm, wet, white, wide, wooden, yellow"
    ),
    "quality": _words(
        "awful, bad, boring, busy, complicated, confusing, crowded, dangerous, different, difficult, dull, empty,"
        "exhausting, foreign, hard, horrible, loud, messy, noisy, quiet, ridiculous, rough, scary, slow, small,"
        "strange, stressful, strict, terrible, unfair, wild, wrong"
    ),
    "character": _words(
        "active, brave, calm, careful, cheerful, confident, different, free, friendly, funny, generous, gentle,"
        "happy, healthy, honest, independent, kind, normal, patient, peaceful, polite, popular, productive, quiet,"
        "relaxed, responsible, rich, sensible, serious, slim, smart, sober, strong, thin, wise, young"
    ),
    "use": _words(
        "borrow, break, buy, carry, check, clean, count, drop, fix, forget, give away, hate, hide, hold, ignore,"
        "keep, leave, lend, like, look for, lose, love, miss, move, need, notice, open, paint, pay for, pick up,"
        "protect, put away, repair, replace, return, ruin, search for, sell, share, show, steal, take, throw away,"
        "touch, use, want, wash, watch, wear, wrap"
    ),
    "used": _words(
        "borrowed, bought, broke, brought, burned, carried, checked, chose, cleaned, damaged, dropped, fixed,"
        "forgot, found, gave away, held, hid, kept, kicked, left, lent, locked, lost, missed, moved, noticed,"
        "opened, ordered, packed, paid for, painted, picked up, put away, repaired, replaced, returned, ruined,"
        "shared, showed, sold, stole, threw away, took, touched, used, washed, watched, wore, wrapped"
    ),
    "treat": _words(
        "annoy, argue with, avoid, blame, bother, call, cheat on, comfort, complain about, correct, criticize,"
        "distract, fight with, follow, forgive, help, hug, hurt, ignore, insult, interrupt, invite, judge,"
        "laugh at, lecture, lie to, listen to, look at, mock, need, point at, praise, push away, question, remind,"
        "respect, scare, scold, shout at, stare at, support, surprise, talk about, talk to, tease, text, thank,"
        "threaten, trust, understand, use, visit, wait for, watch, worry about, write to, yell at"
    ),
    "often": _words("almost never, always, constantly, hardly ever, never, often, rarely, sometimes, still, usually"),
    "where": _words(
        "abroad, at home, at school, at the table, at work, in bed, in public, in the car, in the dark,"
        "in the kitchen, in the street, in town, next door, on the bus, on the phone, online, outside, upstairs"
    ),
    "activity": _words(
        "reading, cooking, painting, singing, playing music, gardening, traveling, drawing, fishing, knitting, writing,"
        "taking photos, baking, sewing, playing guitar, playing cards, watching movies, seeing people, going out"
    ),
}


def third_person(verb: str) -> str:
    """ "carry out" -> "carries out": the first word takes the ending."""
    first, space, rest = verb.partition(" ")
    if first.endswith(("s", "sh", "ch", "x", "z", "o")):
        first += "es"
    elif first.endswith("y") and first[-2] not in "aeiou":
        first = first[:-1] + "ies"
    else:
        first += "s"
    return first + space + rest


SETS["uses"] = tuple(third_person(verb) for verb in SETS["use"])
SETS["treats"] = tuple(third_person(verb) for verb in SETS["treat"])
SETS["verbs"] = tuple(third_person(verb) for verb in SETS["verb"])
# Slots that draw from another slot's words, so that one sentence can hold two of a kind.
for _twin, _of in (("other", "name"), ("tool", "noun"), ("deed", "verb")):
    SETS[_twin] = SETS[_of]

PRONOUNS: dict[str, tuple[str, str, str]] = {"f": ("she", "her", "her"), "m": ("he", "his", "him")}
_FEMALE = set(SETS["name"][: SETS["name"].index("Ben")]) | {
    "wife",
    "girlfriend",
    "mother",
    "mom",
    "stepmother",
    "grandmother",
    "aunt",
    "sister",
    "daughter",
    "stepdaughter",
}
_MALE = set(SETS["name"][SETS["name"].index("Ben") :]) | {
    "husband",
    "boyfriend",
    "father",
    "dad",
    "stepfather",
    "grandfather",
    "uncle",
    "brother",
    "son",
    "stepson",
}


def gender_of(person: str) -> str | None:
    """`f`, `m`, or None where the word leaves it open and the generator draws one."""
    last = person.split()[-1]
    return "f" if last in _FEMALE else "m" if last in _MALE else None


# Need -> the feelings that point to it. The need is what a complex reflection adds to the client's own words.
FEELINGS: dict[str, tuple[str, ...]] = {
    "some rest": _words("tired, worn out, exhausted, drained, burned out, weary, run down"),
    "room to breathe": _words("overwhelmed, stressed, stretched thin, under pressure, swamped, tense, restless"),
    "to feel safe": _words("scared, afraid, anxious, worried, nervous, uneasy, frightened, terrified, panicky"),
    "to be treated fairly": _words("angry, furious, frustrated, annoyed, irritated, resentful, bitter, mad, fed up"),
    "some comfort": _words("sad, down, low, heartbroken, empty, miserable, unhappy, depressed, tearful"),
    "someone close": _words("lonely, alone, left out, isolated, forgotten, unwanted, cut off, invisible"),
    "to be proud of yourself again": _words("ashamed, embarrassed, worthless, small, useless, weak, inferior"),
    "something to change": _words(
        "stupid, terrible, awful, upset, ugly, old, numb, broken, bored, jealous, dumb, sick, bad, lazy, horrible"
    ),
    "to forgive yourself": _words("guilty, sorry, selfish, torn, remorseful"),
    "a way forward": _words("stuck, trapped, lost, hopeless, helpless, confused, unsure, discouraged, defeated"),
    "to be cared for": _words("hurt, rejected, unloved, betrayed, let down, ignored, unappreciated, misunderstood"),
    "to keep going": _words("hopeful, proud, relieved, excited, motivated, grateful, ready, determined"),
}
NEED_OF: dict[str, str] = {feeling: need for need, feelings in FEELINGS.items() for feeling in feelings}

# Fits "I feel {likeness}", and nothing else that a feeling fits.
LIKENESSES: tuple[str, ...] = _words(
    "like a failure, like a burden, like a fool, like a stranger, like a child, like a fraud, like a loser,"
    "like a bad mother, like a bad father, like a bad person, like a bad friend, like a prisoner, like a machine,"
    "like an outsider, like an idiot, like a coward, like a ghost, like nobody cares, like nobody listens,"
    "like giving up, like crying, like running away, like screaming, like I am not enough, like I am going crazy,"
    "like I can't breathe"
)

# Sentences a client adds that carry no slot.
FILLERS: tuple[str, ...] = (
    "I don't know what to do.", "I don't know what to do anymore.", "It never seems to end.",
    "I can't take it anymore.", "Nobody seems to get it.", "I thought it would be easier by now.",
    "I've tried everything.", "It's a lot.",
    "I don't know who to talk to.", "It's always the same.", "I keep telling myself it will pass.",
    "I want it to stop.",
    "I can't remember the last time things were good.", "I know it sounds silly.", "It's hard to explain.",
    "Maybe it's my own fault.", "I haven't told anyone.", "Some days are better than others.", "It's getting worse.",
    "I think about it all day.", "I should be over it by now.", "I don't want to complain.", "This is not who I am.",
    "I never thought this would happen to me.", "Everyone says it will get better.", "I need some help with this.",
    "I hate that it got this far.", "That's why I came here today.", "It scares me a little.",
    "I just had to say it.",
)  # fmt: skip
