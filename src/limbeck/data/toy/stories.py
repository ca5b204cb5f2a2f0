"""Toy stories: eight small plots with names, things and places, 40 to 120 words each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from limbeck.data.toy.words import BOYS, GIRLS, say, two

__all__ = ["stories"]

_THINGS = (
    "ball", "kite", "drum", "boat", "doll", "hat", "cup", "bell", "ring", "book", "scarf", "lamp", "spoon", "key",
    "whistle", "marble", "puppet", "basket", "button", "brush",
)  # fmt: skip
_LOOKS = ("red", "blue", "green", "yellow", "small", "shiny", "round", "soft", "old", "striped", "tiny", "bright")
_PLACES = ("park", "garden", "forest", "barn", "market", "meadow", "beach", "kitchen", "school", "library", "orchard")
_SPOTS = (
    "under the bed", "behind the door", "in the tall grass", "near the pond", "on the shelf", "under the big tree",
    "in the wagon", "beside the well", "behind the fence", "in the laundry", "under the bench", "by the gate",
)  # fmt: skip
_ANIMALS = (
    "cat", "dog", "duck", "frog", "rabbit", "bird", "mouse", "goat", "hedgehog", "squirrel", "pony", "turtle",
    "lamb", "fox", "bear cub", "hen",
)  # fmt: skip
_ELDERS = ("mom", "dad", "grandma", "grandpa", "aunt", "uncle", "teacher")
_FOODS = ("cake", "soup", "bread", "pie", "jam", "cookies", "pancakes", "porridge", "pudding", "muffins")
_FEARS = (
    ("the dark", "a small lamp", "the shadows were only coats and chairs"),
    ("thunder", "a warm blanket", "the noise was only the clouds bumping"),
    ("deep water", "a round float", "the water could hold {him} up"),
    ("loud trains", "a soft pair of mittens for the ears", "the train only wanted to say hello"),
    ("the tall slide", "a brave hand to hold", "going down felt like flying"),
    ("big dogs", "a piece of bread to share", "the dog only wanted to play"),
)
_WEATHER = (
    ("rain began to fall", "got wet", "dry"),
    ("snow began to fall", "got cold", "warm"),
    ("a strong wind began to blow", "felt cold", "warm"),
    ("the sun grew very hot", "got thirsty", "cool"),
)


class _Cast:
    """Who and what one story is about."""

    def __init__(self, random: Random) -> None:
        girl = random.random() < 0.5
        self.name, self.friend = two(random, GIRLS if girl else BOYS)
        self.he, self.his, self.him = ("she", "her", "her") if girl else ("he", "his", "him")
        self.child = "girl" if girl else "boy"
        self.look, self.other = two(random, _LOOKS)
        self.thing, self.toy = two(random, _THINGS)
        self.place = random.choice(_PLACES)
        self.spot, self.second = two(random, _SPOTS)
        self.animal = random.choice(_ANIMALS)
        self.elder = random.choice(_ELDERS)
        self.food = random.choice(_FOODS)


def _opening(random: Random, c: _Cast) -> str:
    return say(
        random,
        """
        [Once upon a time, there was|One day, there was|Long ago, in a small town, there lived] a
        [little|young|kind|clever] {child} named {name}.
        """,
        **vars(c),
    )


def _lost(random: Random, c: _Cast) -> str:
    return say(
        random,
        """
        {name} had a {look} {thing}. {name} [loved|liked] the {thing} very much and took it to the {place} every
        day. [One morning|One day|After lunch], the {thing} was gone! {name} was [sad|worried]. [First, {he}
        looked|{name} looked] {spot}, but it was not there. [Then|Next] {he} asked {his} {elder} for help. They
        looked {second} and there it was! "[Here is|I see|I found] the {thing}!" said {his} {elder}. {name}
        [hugged|held] the {look} {thing} and [smiled|laughed]. From that day on, {he} [put it in a safe place|kept
        it close|took good care of it].
        """,
        **vars(c),
    )


def _share(random: Random, c: _Cast) -> str:
    return say(
        random,
        """
        {name} had a {look} {thing}. [One day|One sunny day], {he} took it to the {place}. {friend} was there too.
        "Can I play with your {thing}?" asked {friend}. "No, it is mine!" said {name}. {friend} was sad and [sat
        down alone|walked away]. {name} [looked at|thought about] {friend} and did not feel good. It was [not fun|no
        fun] to play alone. So {name} said, "I am sorry. [Let us|We can] play together." They [shared|took turns
        with] the {thing} all day. [Sharing made them both happy|They became good friends|They laughed and laughed].
        """,
        **vars(c),
    )


def _friend(random: Random, c: _Cast) -> str:
    return say(
        random,
        """
        [One day|One morning], {name} went to the {place} and saw a {other} {animal} {spot}. The {animal} was [all
        alone|sad|shy]. "Hello, {animal}," said {name}. "[Why are you sad|What is wrong]?" The {animal} said, "I
        have no one to play with." {name} [smiled|thought for a moment] and said, "I will be your friend." {name}
        gave the {animal} a {look} {thing}. They [ran|jumped|danced] and played until the sun went down. Now the
        {animal} was not [alone|sad] any more, and {name} [came back every day|had a new friend].
        """,
        **vars(c),
    )


def _brave(random: Random, c: _Cast) -> str:
    fear, gift, truth = random.choice(_FEARS)
    return say(
        random,
        """
        {name} was afraid of {fear}. [One night|One day], {friend} asked {him} to come and play, but {name}
        [hid|stayed] {spot}. "I am [scared|afraid]," said {name}. {His} {elder} [sat down beside {him}|took {his}
        hand] and gave {him} {gift}. "[Try|Look] again. You are [brave|strong]," said {his} {elder}. {name} took a
        [deep breath|small step] and tried. [Soon|Then] {he} saw that {truth}. {name} was [proud|so happy]. After
        that, {he} was not afraid of {fear} any more.
        """,
        fear=fear, gift=gift, truth=truth.format(him=c.him), His=c.his.capitalize(), **vars(c),
    )  # fmt: skip


def _baking(random: Random, c: _Cast) -> str:
    return say(
        random,
        """
        {name} wanted to make {food} for {friend}. {His} {elder} [gave {him}|found] a {look} bowl and a big spoon.
        {name} [mixed|stirred] and [mixed|stirred], but {he} put in [too much salt|too much water|no sugar]. The
        {food} tasted [bad|strange]! {name} [began to cry|was sad]. "Do not worry," said {his} {elder}. "[We can|Let
        us] try again." This time, {name} was [careful|slow] and [read|asked about] every step. The {food} smelled
        [so good|wonderful]. {friend} took a bite and said, "[Yum|Thank you, {name}]! This is the best {food} of
        all."
        """,
        His=c.his.capitalize(), **vars(c),
    )  # fmt: skip


def _help(random: Random, c: _Cast) -> str:
    return say(
        random,
        """
        [One day|One cold day], {name} heard a [small|sad] sound {spot}. It was a {animal}! The {animal} had hurt
        its [leg|foot]. "[Please help me|Can you help me]," said the {animal}. {name} ran [home|to {his} {elder}]
        and came back with a {look} {thing} and some water. {name} [was very gentle|worked with care]. [Soon|After
        some days], the {animal} could walk again. "Thank you, {name}," it said. The next week, {name} lost {his}
        way in the {place}. [Who came|Guess who came] to help? It was the {animal}! It showed {him} the way home.
        """,
        **vars(c),
    )


def _trip(random: Random, c: _Cast) -> str:
    change, felt, again = random.choice(_WEATHER)
    return say(
        random,
        """
        {name} and {his} {elder} went to the {place} [to find|to look for] a {look} {thing}. On the way, they
        [met|saw] a {animal} and waved to it. [Suddenly|Then], {change}. {name} {felt}. "[Let us hide|Come with
        me]!" said {his} {elder}. They [ran|went] and sat down {spot}. [There|And there], {name} saw something
        {look}. It was the {thing}! "[We found it|Look, there it is]!" {name} said. They went home and ate {food}.
        {name} was {again} and happy, and [told {friend} all about it|slept well that night].
        """,
        change=change, felt=felt, again=again, **vars(c),
    )  # fmt: skip


def _lesson(random: Random, c: _Cast) -> str:
    return say(
        random,
        """
        "Do not [play with|touch] my {other} {toy}," said {his} {elder}. But {name} wanted [to see it|to hold it] so
        much. When no one was there, {he} took the {toy} and ran to the {place}. Oh no! The {toy} fell and broke.
        {name} [hid it|put it] {spot} and felt [bad|very bad]. At night, {he} could not sleep. In the morning, {he}
        told {his} {elder} the truth. "I am sorry," said {name}. "Thank you for telling me," said {his} {elder}.
        "[We will|Let us] fix it together." {name} learned [to tell the truth|to listen|to ask first].
        """,
        **vars(c),
    )


_PLOTS: tuple[Callable[[Random, _Cast], str], ...] = (
    _lost, _share, _friend, _brave, _baking, _help, _trip, _lesson,
)  # fmt: skip


def stories(random: Random) -> Iterator[dict[str, str]]:
    """Yield endless stories, field ``text``."""
    while True:
        cast = _Cast(random)
        plot = random.choice(_PLOTS)
        yield {"text": f"{_opening(random, cast)} {plot(random, cast)}"}
