"""Toy judgements: sentences with a sentiment, and pairs of questions that ask the same or not."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from limbeck.data.toy.words import capital, say, two

__all__ = ["paraphrase", "sentiment", "sentiment5"]

_ADJECTIVES = (
    ("awful", "terrible", "dreadful", "hopeless", "horrible", "unbearable", "disastrous"),
    ("weak", "dull", "poor", "disappointing", "clumsy", "tired", "forgettable"),
    ("average", "ordinary", "passable", "fair", "unremarkable", "middling"),
    ("good", "pleasant", "charming", "solid", "enjoyable", "fine", "likable"),
    ("brilliant", "wonderful", "superb", "perfect", "stunning", "marvelous", "outstanding"),
)
"""By class, from worst to best."""

_PARTS = (
    "plot", "acting", "music", "ending", "dialogue", "camera work", "story", "script", "cast", "first half", "humor",
    "editing", "final scene", "lead actor", "pacing", "soundtrack", "opening", "direction",
)  # fmt: skip
_WORKS = ("film", "movie", "play", "show", "series", "comedy", "drama", "sequel", "documentary", "musical")
_VERDICTS = (
    ("I want those two hours back", "nobody should sit through this", "I left before the end"),
    ("I would not watch it again", "I kept looking at the clock", "there are better ways to spend an evening"),
    ("I have no strong feelings about it", "it passes the time", "it is neither here nor there"),
    ("I would recommend it to friends", "I left with a smile", "it is well worth a ticket"),
    ("I could watch it forever", "I have never seen anything better", "it left me speechless with joy"),
)


def _sentence(random: Random, level: int) -> str:
    """Return a sentence whose sentiment is ``level``, 0 to 4: after a 'but' the second half decides."""
    good = random.choice(_ADJECTIVES[level])
    part, other = two(random, _PARTS)
    work = random.choice(_WORKS)
    form = random.randrange(6)
    if form == 0:
        return say(random, "the {part} of this {work} is [simply|truly|] {good} .", part=part, work=work, good=good)
    if form == 1:
        contrast = random.choice(_ADJECTIVES[random.choice([x for x in range(5) if abs(x - level) > 1])])
        text = "the {part} [is|was] {contrast} , but the {work} as a whole [is|was] {good} ."
        return say(random, text, part=part, contrast=contrast, work=work, good=good)
    if form == 2:
        same = random.choice([word for word in _ADJECTIVES[level] if word != good])
        text = "[a|this] {work} with {same} {part} and {good} {other} ."
        return say(random, text, work=work, same=same, part=part, good=good, other=other)
    if form == 3:
        verdict = random.choice(_VERDICTS[level])
        return say(random, "[the {part} is {good} , and|in this {work} ,|after this {work} ,] {verdict} .",
                   part=part, good=good, work=work, verdict=verdict)  # fmt: skip
    if form == 4 and level in (1, 3):
        # a denial moves one step over the middle: not good is weak, not bad at all is good
        turned = random.choice(_ADJECTIVES[4 - level])
        return say(random, "the {part} of [this|the] {work} [is|was] not {turned} [at all|] .",
                   part=part, work=work, turned=turned)  # fmt: skip
    return say(random, "[what a|it is a|overall , a] {good} {work} , and the {part} [shows|proves] it .",
               good=good, work=work, part=part)  # fmt: skip


def sentiment(random: Random) -> Iterator[dict[str, Any]]:
    """Yield endless sentences, fields ``sentence`` and ``label``: 0 negative, 1 positive."""
    while True:
        label = random.randrange(2)
        level = random.choice((3, 4) if label else (0, 1))
        yield {"sentence": _sentence(random, level), "label": label}


def sentiment5(random: Random) -> Iterator[dict[str, Any]]:
    """Yield endless sentences, fields ``sentence`` and ``label``: 0 very negative to 4 very positive."""
    while True:
        level = random.randrange(5)
        yield {"sentence": _sentence(random, level), "label": level}


_INTENTS: dict[str, tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]] = {
    "skill": (
        ("chess", "knitting", "the violin", "pottery", "swimming", "Latin", "juggling", "carpentry", "sailing",
         "archery", "drawing", "baking bread", "fencing", "astronomy", "gardening", "typing"),
        (
            ("How can I learn {t}?", "What is the best way to learn {t}?", "How do I get started with {t}?",
             "Where should a beginner start with {t}?"),
            ("How long does it take to get good at {t}?", "How much time do I need to master {t}?",
             "How many years of practice does {t} take?"),
            ("Is {t} expensive?", "Does {t} cost a lot of money?", "How much money do I need for {t}?"),
            ("Why do people enjoy {t}?", "What do people like about {t}?", "What makes {t} so much fun?"),
            ("Who invented {t}?", "Where does {t} come from?", "What is the origin of {t}?"),
        ),
    ),
    "animal": (
        ("cats", "owls", "bees", "whales", "horses", "turtles", "foxes", "parrots", "goats", "spiders", "wolves",
         "rabbits", "frogs", "swans", "bats", "hedgehogs"),
        (
            ("What do {t} eat?", "What is the usual food of {t}?", "What should I feed {t}?"),
            ("How long do {t} live?", "What is the life span of {t}?", "How old can {t} get?"),
            ("Where do {t} sleep?", "What kind of place do {t} sleep in?", "In which places do {t} rest at night?"),
            ("Are {t} dangerous?", "Can {t} hurt people?", "Should I be afraid of {t}?"),
            ("How do {t} talk to each other?", "What sounds do {t} make to each other?",
             "In what way do {t} communicate?"),
        ),
    ),
    "town": (
        ("Oakby", "Marlow Bay", "Fernhill", "Stonebridge", "Westwick", "Larkford", "Pinegate", "Harrow Sands",
         "Millbrook", "Redcliff", "Eastmoor", "Willowton", "Kingsferry", "Ashdale"),
        (
            ("How do I get to {t}?", "What is the quickest way to {t}?", "Which road leads to {t}?"),
            ("What should I see in {t}?", "What are the best sights of {t}?", "Which places in {t} are worth a visit?"),
            ("Is it expensive to live in {t}?", "What does a house in {t} cost?", "How high are rents in {t}?"),
            ("What is the weather like in {t}?", "Does it rain much in {t}?", "What kind of climate does {t} have?"),
            ("How many people live in {t}?", "What is the population of {t}?", "How big is the town of {t}?"),
        ),
    ),
}  # fmt: skip


def paraphrase(random: Random) -> Iterator[dict[str, Any]]:
    """Yield endless pairs, fields ``sentence1``, ``sentence2`` and ``is_duplicate``: 1 in two of five.

    The others share the topic or the kind of question, so that words in common do not give the answer away.
    """
    while True:
        topics, intents = _INTENTS[random.choice(tuple(_INTENTS))]
        topic, other_topic = two(random, topics)
        intent, other_intent = two(random, intents)
        duplicate = random.random() < 0.5
        if duplicate:
            first, second = two(random, intent)
            second_topic = topic
        elif random.random() < 0.5:
            first, second, second_topic = random.choice(intent), random.choice(other_intent), topic
        else:
            first, second, second_topic = random.choice(intent), random.choice(intent), other_topic
        asked = (capital(first.format(t=topic)), capital(second.format(t=second_topic)))
        yield {"sentence1": asked[0], "sentence2": asked[1], "is_duplicate": int(duplicate)}
