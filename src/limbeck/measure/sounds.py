"""How English words sound: pronunciations from the CMU dictionary, and a guess from the spelling for other words.

A pronunciation is a tuple of ARPAbet phones; a vowel ends in its stress: 1 primary, 2 secondary, 0 none.
"""

from __future__ import annotations

import functools
import itertools
import re

__all__ = ["count_syllables", "pronunciations", "rhyme_keys", "rhymes", "word_of"]

Phones = tuple[str, ...]

_VOICELESS = frozenset("P T K F TH S SH CH".split())
_SIBILANT = frozenset("S Z SH ZH CH JH".split())
_SUFFIXES: tuple[tuple[str, Phones], ...] = (
    ("'st", ("S", "T")), ("est", ("IH0", "S", "T")), ("st", ("S", "T")), ("eth", ("IH0", "TH")),
    ("less", ("L", "AH0", "S")), ("ness", ("N", "AH0", "S")), ("ful", ("F", "AH0", "L")), ("ly", ("L", "IY0")),
    ("ing", ("IH0", "NG")), ("in'", ("IH0", "N")), ("er", ("ER0",)), ("like", ("L", "AY2", "K")),
)  # fmt: skip
"""Endings that a dictionary lacks on many words, archaic ones first, and how each sounds."""

_POETIC = {"o'er": "ore", "e'er": "air", "ne'er": "bare", "e'en": "bean", "ev'n": "even", "murther": "murder"}
"""Poets' words, each with one of the same rhyme and length."""

_PREFIXES = {"over": 2} | dict.fromkeys(
    ("un", "dis", "re", "be", "fore", "for", "o'er", "out", "en", "in", "im", "mis", "up", "a"), 1
)
"""What may stand before a word, and its syllables."""


def word_of(text: str) -> str:
    """Return the last word of a line, in lower case; of a hyphenated one its last part; empty where there is none."""
    words = [w.strip("'") for w in re.findall(r"[a-zà-ÿ']+", text.lower().replace("’", "'"))]
    return next((w for w in reversed(words) if w), "")


@functools.cache
def pronunciations(word: str) -> tuple[Phones, ...]:
    """Return how ``word`` (lower case) is said: every entry of the dictionary, or what its parts give; empty if
    unknown.
    """
    import pronouncing  # a second to load its dictionary, and wanted for verse alone

    found = tuple(dict.fromkeys(tuple(p.split()) for p in pronouncing.phones_for_word(word)))
    if found:
        return found
    if word in _POETIC:
        return pronunciations(_POETIC[word])
    return _derived(word)


def _derived(word: str) -> tuple[Phones, ...]:
    """Stem and ending, for inflected and archaic forms that the dictionary lacks."""
    if len(word) < 3:
        return ()
    for ending in ("'d", "èd", "éd", "ed", "d"):
        if word.endswith(ending) and (stems := _stems(word.removesuffix(ending))):
            full = ("IH0", "D") if ending in ("èd", "éd") else None
            return tuple(p + (full or _past(p)) for p in stems)
    for ending in ("'s", "es", "s"):
        if word.endswith(ending) and not word.endswith("ss") and (stems := _stems(word.removesuffix(ending))):
            return tuple(p + _plural(p) for p in stems)
    for ending, phones in _SUFFIXES:
        if word.endswith(ending) and (stems := _stems(word.removesuffix(ending))):
            return tuple(p + phones for p in stems)
    for start, syllables in _PREFIXES.items():
        if word.startswith(start) and len(word) > len(start) + 2 and (rest := pronunciations(word.removeprefix(start))):
            return tuple(("AH0", "-") * syllables + p for p in rest)  # how it sounds there changes no rhyme
    return ()


def _stems(stem: str) -> tuple[Phones, ...]:
    """Pronunciations of what an ending was taken from: as it is, with its ``e``, undoubled, or with ``y`` for ``i``."""
    tried = [stem + "e", stem] if re.search(r"[aeiouy][^aeiouywx]$", stem) else [stem, stem + "e"]
    if len(stem) > 2 and stem[-1] == stem[-2]:
        tried.append(stem[:-1])
    if stem.endswith("i"):
        tried.append(stem[:-1] + "y")
    return next((p for s in tried if len(s) > 1 and (p := pronunciations(s.rstrip("'")))), ())


def _past(stem: Phones) -> Phones:
    if stem[-1] in ("T", "D"):
        return ("IH0", "D")
    return ("T",) if stem[-1] in _VOICELESS else ("D",)


def _plural(stem: Phones) -> Phones:
    if stem[-1] in _SIBILANT:
        return ("IH0", "Z")
    return ("S",) if stem[-1] in _VOICELESS else ("Z",)


def _is_vowel(phone: str) -> bool:
    return phone[-1].isdigit()


def count_syllables(word: str) -> tuple[int, int]:
    """Return fewest and most syllables that ``word`` (lower case) may have in verse.

    A dictionary word has those of its entries; verse may drop one weak vowel of ``heaven`` or ``flattering``,
    and may say the ending of ``wretched`` or ``loved``. A word of unknown sound is counted by its vowel letters.
    """
    known = pronunciations(word)
    if not known:
        guess = _vowel_groups(word)
        return guess, guess
    counts = [sum(map(_is_vowel, p)) for p in known]
    fewest = min(n - _can_drop(p) for n, p in zip(counts, known, strict=True))
    spoken = any(p[-2:] in (("IH0", "D"), ("AH0", "D")) for p in known)
    return max(1, fewest), max(counts) + (word.endswith("ed") and not spoken)


def _can_drop(phones: Phones) -> bool:
    """May verse leave out a syllable: one of two vowels in a row, or a weak one beside v, th, r, l or n?"""
    vowels = [i for i, p in enumerate(phones) if _is_vowel(p)]
    for a, b in itertools.pairwise(vowels):
        weak = phones[b][-1] == "0"
        if weak and b == a + 1:
            return True  # power, being, glorious
        if weak and b == a + 2 and phones[a + 1] in ("V", "DH") and phones[-1] in ("N", "ER0", "L"):
            return True  # heaven, even, over, whether
    inner = vowels[1:-1]
    return any(phones[i] == "ER0" or (phones[i] in ("AH0", "IH0") and phones[i + 1] in ("R", "L", "N")) for i in inner)


def _vowel_groups(word: str) -> int:
    letters = re.sub(r"[^a-zà-ÿ]", "", word)
    if not re.search(r"([td]ed|[sxz]es|le)$", letters):
        letters = re.sub(r"(?<=[^aeiouy])e[ds]?$", "", letters)
    return max(1, len(re.findall(r"[aeiouyà-ÿ]+", letters)))


_MERGED = {"Z": "S", "DH": "TH", "ZH": "SH"}
"""Codas that verse lets rhyme: was with pass, breathe with death."""


@functools.cache
def rhyme_keys(word: str) -> frozenset[str]:
    """Return what ``word`` (lower case) may share with a word that it rhymes with.

    ``=`` keys are exact: from the last stressed vowel on. ``~`` keys are what poets of Shakespeare's time, and of ours,
    also take: the last syllable alone where verse puts a beat on it (memory with thee, and with die; buried with dead),
    and equal spelling from the last vowel letters on (love with prove, ornament with content).
    """
    known = pronunciations(word)
    keys = set[str]()
    for phones in known:
        vowels = [i for i, p in enumerate(phones) if _is_vowel(p)]
        stressed = next((i for i in reversed(vowels) if phones[i][-1] in "12"), vowels[-1] if vowels else 0)
        keys.add("=" + _sound(phones[stressed:]))
        if vowels and (vowels[-1] == stressed or len(vowels) > 2):
            keys.add("~" + _sound(phones[vowels[-1] :]))
        if phones[stressed:] in (("AH1", "NG"), ("AO1", "NG")):
            keys.add("~ong")  # tongue with song
    long = len(known[0]) > 0 and sum(map(_is_vowel, known[0])) > 2 if known else _vowel_groups(word) > 2
    if long and word.endswith("y"):
        keys |= {"~IY", "~AY"}
    if word.endswith("ed") and _vowel_groups(word) > 1:
        keys.add("~EH D")  # the ending said
    return frozenset(keys | _spelled(word, known, long))


def _spelled(word: str, known: tuple[Phones, ...], long: bool) -> set[str]:
    """Letters from the last vowel on where a beat may fall there, else from the vowel before it (loving, moving)."""
    letters = re.sub(r"[^a-z]", "", word)
    groups = list(re.finditer(r"[aeiouy]+", re.sub(r"(?<=[^aeiouy])e$", " ", letters)))
    if not groups:
        return set()
    beat = long or not known or any(_ends_stressed(p) for p in known)
    start = groups[-1].start() if beat or len(groups) < 2 else groups[-2].start()
    tail = letters[start:]
    return {f"~letters {tail}"} if re.search(r"[^aeiouy]", tail) else set()


def _ends_stressed(phones: Phones) -> bool:
    last = next((p for p in reversed(phones) if _is_vowel(p)), "")
    return last[-1:] in ("1", "2")


def _sound(phones: Phones) -> str:
    plain = [_MERGED.get(p.rstrip("012"), p.rstrip("012")) for p in phones]
    vowel = "AA" if plain[0] == "AO" and plain[1:2] != ["R"] else plain[0]  # cot and caught
    return " ".join([vowel, *("AH" if p in ("IH", "AH") else p for p in plain[1:])])


def rhymes(a: str, b: str, *, strict: bool = False) -> bool:
    """Do two words (lower case) rhyme? A word does not rhyme with itself.

    Args:
        a: one word.
        b: another.
        strict: only by sound, from the last stressed vowel on.
    """
    if a == b or not a or not b:
        return False
    shared = rhyme_keys(a) & rhyme_keys(b)
    return any(key.startswith("=") for key in shared) if strict else bool(shared)
