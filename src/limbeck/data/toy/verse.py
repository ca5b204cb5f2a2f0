"""Toy verse: fourteen lines rhymed ABAB CDCD EFEF GG, ten syllables each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from random import Random

from limbeck.data.toy.words import capital

__all__ = ["RHYMES", "SCHEME", "verse"]

SCHEME = "ABABCDCDEFEFGG"
"""Rhyme of each of the fourteen lines."""

RHYMES: tuple[tuple[str, ...], ...] = (
    ("night", "light", "sight", "flight", "height", "knight", "might", "fight", "kite"),
    ("day", "way", "bay", "clay", "play", "ray", "spray", "May", "hay"),
    ("sea", "tree", "key", "bee", "knee", "plea", "glee", "quay"),
    ("rain", "grain", "plain", "pain", "chain", "lane", "train", "vein", "cane"),
    ("crown", "town", "gown", "down", "frown", "noun"),
    ("stone", "bone", "throne", "tone", "loan", "zone", "moan"),
    ("hill", "mill", "sill", "chill", "will", "quill", "thrill", "skill"),
    ("sound", "ground", "mound", "hound", "round", "pound"),
    ("fire", "wire", "choir", "lyre", "spire", "tire"),
    ("snow", "glow", "row", "bow", "crow", "flow", "show"),
    ("heart", "art", "part", "start", "cart", "chart", "dart"),
    ("wall", "hall", "call", "ball", "shawl", "stall", "squall"),
    ("air", "chair", "stair", "prayer", "pair", "bear", "share"),
    ("bed", "thread", "bread", "head", "lead", "shed", "sled"),
    ("sky", "eye", "pie", "sigh", "lie", "cry", "dye"),
    ("face", "place", "grace", "lace", "race", "space", "vase"),
    ("gold", "fold", "hold", "cold", "mold"),
    ("wing", "spring", "king", "ring", "string", "thing", "swing"),
    ("boat", "coat", "note", "throat", "goat", "moat", "vote"),
    ("deep", "sleep", "sheep", "keep", "sweep", "leap", "heap"),
    ("wheel", "steel", "meal", "seal", "heel", "keel"),
    ("land", "hand", "sand", "band", "strand", "stand"),
    ("mine", "line", "wine", "pine", "sign", "vine", "shrine"),
    ("moon", "tune", "spoon", "June", "noon", "dune"),
    ("year", "tear", "fear", "ear", "deer", "spear", "pier"),
    ("rose", "nose", "prose", "toes", "clothes", "pose"),
)
"""Words that rhyme, by group."""

_WORDS: Mapping[str, Sequence[str]] = {
    "a1": ("bright", "dark", "soft", "cold", "warm", "sweet", "pale", "wild", "calm", "old", "young", "deep", "brave",
           "plain", "kind", "proud"),
    "a2": ("golden", "silent", "gentle", "silver", "lonely", "ancient", "broken", "quiet", "tender", "distant",
           "hollow", "hidden", "weary", "patient", "restless", "frozen"),
    "n1": ("wind", "song", "dream", "leaf", "wave", "star", "cloud", "road", "bird", "thought", "voice", "breath",
           "lamp", "bell", "ship", "stream"),
    "n2": ("river", "garden", "morning", "summer", "winter", "shadow", "meadow", "window", "harbor", "forest",
           "candle", "swallow", "mirror", "mountain", "sailor", "shepherd"),
    "p1": ("stars", "birds", "waves", "leaves", "winds", "bells", "clouds", "dreams", "streams", "ships", "songs"),
    "p2": ("rivers", "shadows", "lanterns", "swallows", "branches", "children", "petals", "footsteps", "embers",
           "sailors"),
    "v1": ("sing", "wait", "fall", "rise", "turn", "dance", "sleep", "weep", "shine", "drift", "fade", "bloom"),
    "v1s": ("sings", "waits", "falls", "turns", "sleeps", "weeps", "shines", "drifts", "fades", "glows"),
}  # fmt: skip

# Nine syllables each, before a last word of one.
_FRAMES = (
    "the {a2} {n2} {v1s} beneath the", "and {a1} {p1} {v1} across the {a2}", "when {p2} {v1} along the {a2}",
    "I saw the {n1} that {v1s} upon the", "O {a2} {n2}, keep me from the", "no {n1} so {a1}, no {n2} like the",
    "my {n1} still {v1s} within the {a2}", "and {p1} that {v1} will {v1} before the", "yet all the {p2} know the {a2}",
    "how {a1} the {n2}, how {a2} the", "the {n1} will {v1}, the {n1} will {v1}, the", "come, {a2} {n2}, to the {a2}",
    "there {v1s} a {n2} by the {a2}", "beyond the {n2} and beside the", "a {n1} of {n1}, a {n1} of {a2}",
    "and where the {n2} {v1s}, I seek the", "the {p1} of {n2} touch the {a2}", "but in my {n1} there {v1s} a {a2}",
)  # fmt: skip
_CLOSING = (
    "so let the {n2} {v1} above the", "and so my {n1} returns to meet the", "so {a2} {p2} guard the {a2}",
    "for none but {a2} {p1} have known the", "and here my {n1}, at last, has found its",
)  # fmt: skip


def verse(random: Random) -> Iterator[dict[str, str]]:
    """Yield endless poems of fourteen lines, field ``text``."""
    while True:
        yield {"text": "\n".join(_poem(random))}


def _poem(random: Random) -> list[str]:
    groups = random.sample(RHYMES, len(set(SCHEME)))
    ends = {letter: random.sample(group, 2) for letter, group in zip(sorted(set(SCHEME)), groups, strict=True)}
    # A poem keeps to a few words, so that it seems to be about something.
    words = {kind: random.sample(pool, 6) for kind, pool in _WORDS.items()}
    frames = random.sample(_FRAMES, 12) + random.sample(_CLOSING, 2)
    lines = []
    for number, (letter, frame) in enumerate(zip(SCHEME, frames, strict=True), start=1):
        line = f"{_fill(random, frame, words)} {ends[letter].pop()}"
        stop = "." if number in (4, 8, 12, 14) else ","
        lines.append(capital(line) + stop)
    return lines


def _fill(random: Random, frame: str, words: Mapping[str, Sequence[str]]) -> str:
    """Put words into the slots, no word twice in a line; ``a`` becomes ``an`` before a vowel."""
    used: set[str] = set()

    def pick(found: re.Match[str]) -> str:
        word = random.choice([w for w in words[found[1]] if w not in used])
        used.add(word)
        return word

    line = re.sub(r"\{(\w+)\}", pick, frame)
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", line)
