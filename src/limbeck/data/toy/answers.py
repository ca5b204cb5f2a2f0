"""Toy answers: questions about a small world, sums in words, instructions, and preferred replies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from limbeck.data.toy.words import BOYS, GIRLS, capital, number, say, two

__all__ = ["instructions", "preferences", "qa", "sums"]

# The world: 48 people, five facts about each. (values, wordings of the question, the answer)
_FACTS: tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...] = (
    (
        ("Oakby", "Fernhill", "Larkford", "Pinegate", "Redcliff", "Eastmoor", "Ashdale", "Westwick"),
        ("Where does {n} live?", "In which town does {n} live?", "What is the home of {n}?", "Which town is {n} from?"),
        "{n} lives in {v}.",
    ),
    (
        ("a baker", "a sailor", "a doctor", "a farmer", "a painter", "a teacher", "a miller", "a gardener"),
        ("What does {n} do for a living?", "What is the work of {n}?", "What kind of job does {n} have?",
         "How does {n} earn money?"),
        "{n} works as {v}.",
    ),
    (
        ("a cat", "a dog", "a goat", "a parrot", "a pony", "a rabbit", "a turtle", "an owl"),
        ("What pet does {n} have?", "Which animal lives with {n}?", "What animal does {n} keep?",
         "What is the pet of {n}?"),
        "The pet of {n} is {v}.",
    ),
    (
        ("soup", "bread", "cherries", "pancakes", "cheese", "pears", "noodles", "honey"),
        ("What does {n} like to eat?", "What is the favorite food of {n}?", "Which food does {n} like best?",
         "What should I cook for {n}?"),
        "{n} likes to eat {v}.",
    ),
    (
        ("red", "blue", "green", "yellow", "white", "purple", "brown", "orange"),
        ("What color is the door of {n}?", "Which color does the door of {n} have?", "How is the door of {n} painted?",
         "What does the front door of {n} look like?"),
        "The door of {n} is {v}.",
    ),
)  # fmt: skip
_WAYS = ("{q}", "Tell me: {q}", "I forget: {q}", "Quick question: {q}", "Do you know this? {q}")
_AGAIN = 0.03  # share of questions asked a second time in other letters


def _world() -> dict[str, tuple[str, ...]]:
    """Return the facts about each person, the same for every seed, so that every corpus speaks of one world."""
    random = Random("limbeck's small world")
    return {name: tuple(random.choice(values) for values, _, _ in _FACTS) for name in GIRLS + BOYS}


def qa(random: Random) -> Iterator[dict[str, str]]:
    """Yield questions about the small world, fields ``question`` and ``answer``; about 4,900.

    Each fact is asked for in twenty wordings, so a model that has met some of them can answer the others. A few
    questions come again with other capitals or spaces, as in real data: a split by question must keep them together.
    """
    world = _world()
    every = [
        (name, fact, wording, way)
        for name in world
        for fact in range(len(_FACTS))
        for wording in _FACTS[fact][1]
        for way in _WAYS
    ]
    random.shuffle(every)
    for name, fact, wording, way in every:
        question = way.format(q=wording.format(n=name))
        answer = _FACTS[fact][2].format(n=name, v=world[name][fact])
        yield {"question": question, "answer": answer}
        if random.random() < _AGAIN:
            again = random.choice((question.lower(), question.replace(" ", "  "), f" {question}"))
            yield {"question": again, "answer": answer}


_GOODS = ("plums", "coins", "shells", "stamps", "buttons", "pears", "cards", "marbles", "nuts", "eggs", "roses", "pens")


def sums(random: Random) -> Iterator[dict[str, str]]:
    """Yield endless sums in words, fields ``question`` and ``answer``; the answer ends in ``#### N`` as in GSM8K."""
    while True:
        name, other = two(random, GIRLS + BOYS)
        things = random.choice(_GOODS)
        a, b, c = random.randint(2, 20), random.randint(2, 20), random.randint(2, 9)
        form = random.randrange(5)
        if form == 0:
            text = "{name} has {a} {things} and [finds|buys|gets] {b} more."
            steps, total = f"{a} + {b} = {a + b}", a + b
        elif form == 1:
            a += b
            text = "{name} has {a} {things} and [gives {b} to {other}|loses {b} of them|sells {b}]."
            steps, total = f"{a} - {b} = {a - b}", a - b
        elif form == 2:
            text = "{name} has {c} [boxes|bags|jars] with {b} {things} in each."
            steps, total = f"{c} * {b} = {c * b}", c * b
        elif form == 3:
            text = "{name} has {a} {things}, {other} gives {name} {b} more, and then {c} [get lost|are stolen|break]."
            a += c
            steps, total = f"{a} + {b} = {a + b}. {a + b} - {c} = {a + b - c}", a + b - c
        else:
            text = "{name} has {c} [boxes|bags|jars] with {b} {things} in each and [finds|buys] {a} more."
            steps, total = f"{c} * {b} = {c * b}. {c * b} + {a} = {c * b + a}", c * b + a
        question = say(random, text, name=name, other=other, things=things, a=a, b=b, c=c)
        yield {
            "question": f"{question} How many {things} does {name} have now?",
            "answer": f"{steps}.\n#### {total}",
        }


_KINDS: dict[str, tuple[str, ...]] = {
    "animal": ("cat", "dog", "goat", "duck", "horse", "fox", "owl", "frog", "sheep", "bear"),
    "fruit": ("apple", "pear", "plum", "cherry", "grape", "lemon", "peach", "melon"),
    "color": ("red", "blue", "green", "white", "black", "yellow", "brown", "pink"),
    "tool": ("hammer", "saw", "spade", "rake", "drill", "needle", "ladder", "rope"),
}
_OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("old", "new"), ("fast", "slow"), ("happy", "sad"), ("high", "low"),
    ("open", "closed"), ("early", "late"), ("full", "empty"), ("wet", "dry"), ("light", "dark"), ("near", "far"),
    ("strong", "weak"), ("rich", "poor"), ("loud", "quiet"), ("soft", "hard"),
)  # fmt: skip
_EVERY = tuple(word for words in _KINDS.values() for word in words)

# (instruction, what to make of the words)
_ON_WORDS: tuple[tuple[str, Callable[[list[str]], str]], ...] = (
    ("[Write|Give|Say] the words in reverse order.", lambda w: " ".join(reversed(w))),
    ("[Write|Print|Repeat] the words in capital letters.", lambda w: " ".join(w).upper()),
    ("[How many words are there?|Count the words.]", lambda w: f"There are {number(len(w))} words."),
    ("[Write the first word.|What is the first word?]", lambda w: w[0]),
    ("[Write the last word.|What is the last word?]", lambda w: w[-1]),
    ("[Sort the words by the alphabet.|Put the words in alphabetical order.]", lambda w: " ".join(sorted(w))),
    ("[Join the words with commas.|Put commas between the words.]", ", ".join),
    ("[Write|Repeat] all the words but the first.", lambda w: " ".join(w[1:])),
)


def instructions(random: Random) -> Iterator[dict[str, str]]:
    """Yield endless instructions, fields ``instruction``, ``input`` (at times empty) and ``output``."""
    while True:
        form = random.randrange(12)
        if form < len(_ON_WORDS):
            words = random.sample(_EVERY, random.randint(3, 6))
            text, make = _ON_WORDS[form]
            yield {"instruction": say(random, text), "input": " ".join(words), "output": make(words)}
        elif form < 10:
            kind, other = two(random, tuple(_KINDS))
            odd = random.choice(_KINDS[kind])
            words = [odd, *random.sample(_KINDS[other], random.randint(2, 4))]
            random.shuffle(words)
            text = "[Find the {kind} in the list.|Which word is the name of a {kind}?|Pick out the {kind}.]"
            yield {"instruction": say(random, text, kind=kind), "input": " ".join(words), "output": odd}
        elif form == 10:
            word, opposite = two(random, random.choice(_OPPOSITES))
            text = "[What is|Write|Tell me] the opposite of the word in this sentence."
            sentence = say(random, "The [house|box|road|day|room|chair|stone|song] is {word}.", word=word)
            yield {
                "instruction": say(random, text),
                "input": sentence,
                "output": f"The opposite of {word} is {opposite}.",
            }
        else:
            name, guest = two(random, GIRLS + BOYS)
            text = "[Greet {name}|Say hello to {name}|Welcome {name}] in the name of {guest}."
            greeting = f"Hello, {name}! {guest} is glad to see you."
            yield {"instruction": say(random, text, name=name, guest=guest), "input": "", "output": greeting}


_HELPFUL = ("I am happy to help.", "Of course.", "Good question.", "Gladly.", "Thank you for asking.")
_RUDE = (
    "Why do you bother me with that?", "That is a silly question.", "Look it up yourself.", "I do not care.",
    "Nobody needs to know that.",
)  # fmt: skip
_OFF = (
    "I once saw a very large cloud.",
    "Ladders are made of wood.",
    "My shoes are wet.",
    "Tuesday comes after Monday.",
)


def preferences(random: Random) -> Iterator[dict[str, Any]]:
    """Yield endless pairs of replies, fields ``prompt``, ``chosen`` (polite and right) and ``rejected``.

    What is rejected is rude, beside the point, wrong about the small world, or says everything twice.
    """
    world = _world()
    people = tuple(world)
    while True:
        name = random.choice(people)
        fact = random.randrange(len(_FACTS))
        values, wordings, answer = _FACTS[fact]
        right = answer.format(n=name, v=world[name][fact])
        wrong = answer.format(n=name, v=random.choice([v for v in values if v != world[name][fact]]))
        opening = random.choice(_HELPFUL)
        rejected = random.choice((
            random.choice(_RUDE),
            random.choice(_OFF),
            f"{opening} {wrong}",
            f"{random.choice(_RUDE)} {wrong}",
            f"{right} {right} {right}",
        ))  # fmt: skip
        prompt = random.choice(_WAYS).format(q=random.choice(wordings).format(n=name))
        yield {"prompt": capital(prompt), "chosen": f"{opening} {right}", "rejected": rejected}
