"""How English words sound: pronunciations from the CMU dictionary, and a guess from the spelling for other words.

A pronunciation is a tuple of ARPAbet phones; a vowel carries its stress as a last digit: 1 primary, 2 secondary, 0 none.
"""

from __future__ import annotations

import functools
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

_POETIC = {"o'er": "ore", "e'er": "air", "ne'er": "nair", "e'en": "een", "'tis": "tis", "'twas": "twas", "ev'n": "even",
           "wherefor": "wherefore", "murther": "murder", "vow'd": "vowed", "th'": "the"}  # fmt: skip


def word_of(text: str) -> str:
    """The last word of a line, in lower case; of a hyphenated one its last part; empty where there is none."""
    found = re.findall(r"[a-zà-ÿ']+", text.lower().replace("’", "'"))
    words = [w.strip("'") if w.strip("'") else "" for w in found]
    return next((w for w in reversed(words) if w), "")


@functools.cache
def pronunciations(word: str) -> tuple[Phones, ...]:
    """How ``word`` (lower case) is said: every entry of the dictionary, or what its parts give; empty if unknown."""
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
    for start in ("un", "dis", "re", "be", "fore", "over", "out", "en", "mis"):
        if word.startswith(start) and len(word) > len(start) + 2 and (rest := pronunciations(word.removeprefix(start))):
            return tuple(("AH0", "-", *p) for p in rest)  # what stands before the stress changes no rhyme
    return ()


def _stems(stem: str) -> tuple[Phones, ...]:
    """Pronunciations of what an ending was taken from: as it is, with its ``e``, undoubled, or with ``y`` for ``i``."""
    tried = [stem, stem + "e"]
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
    """Fewest and most syllables that ``word`` (lower case) may have in verse.

    A dictionary word has those of its entries; of ``heaven``, ``power`` or ``flattering`` verse may drop a weak vowel
    before r, l, n or v between others, and may say the ending of ``wretched`` or ``loved``. A word of unknown sound is
    counted by its vowel letters, plus or minus none.
    """
    known = pronunciations(word)
    if not known:
        guess = _vowel_groups(word)
        return guess, guess
    counts = [sum(map(_is_vowel, p)) for p in known]
    fewest = min(n - _droppable(p) for n, p in zip(counts, known, strict=True))
    sounded = int(word.endswith("ed") and not any(p[-2] in ("IH0", "AH0") and p[-1] == "D" for p in known if len(p) > 1))
    return max(1, fewest), max(counts) + sounded


def _droppable(phones: Phones) -> int:
    """1 if verse may leave out a syllable: of two vowels in a row, or a weak one before r, l, n, v or at its side."""
    vowels = [i for i, p in enumerate(phones) if _is_vowel(p)]
    for a, b in zip(vowels, vowels[1:], strict=False):
        if b == a + 1 and phones[b][-1] == "0":
            return 1  # power, being, glorious
        if b == a + 2 and phones[b][-1] == "0" and phones[a + 1] in ("V", "DH") and phones[-1] in ("N", "ER0", "L", "T"):
            return 1  # heaven, even, over, whether, spirit
    for a in vowels[1:-1]:
        if phones[a] in ("ER0", "AH0", "IH0") and (phones[a] == "ER0" or phones[a + 1 : a + 2] in (("R",), ("L",), ("N",))):
            return 1  # flattering, every, general
    return 0


def _vowel_groups(word: str) -> int:
    letters = re.sub(r"[^a-zà-ÿ]", "", word)
    letters = re.sub(r"(?<=[^aeiouy])e(d|s)?$", "", letters) if not re.search(r"([td]ed|[sxz]es|le)$", letters) else letters
    return max(1, len(re.findall(r"[aeiouyà-ÿ]+", letters)))


_MERGED = {"Z": "S", "DH": "TH", "ZH": "SH"}
"""Codas that verse lets rhyme: was with pass, breathe with death."""


@functools.cache
def rhyme_keys(word: str) -> frozenset[str]:
    """What ``word`` (lower case) may share with a word that it rhymes with.

    ``=`` keys are exact: from the last stressed vowel on. ``~`` keys are what poets of Shakespeare's time and ours also
    take: the last syllable alone, where verse puts a beat on it (memory with thee, and with die), and equal spelling
    from the last vowel letter on (love with prove), of a last syllable that is stressed or of unknown sound.
    """
    keys = set()
    known = pronunciations(word)
    for phones in known:
        vowels = [i for i, p in enumerate(phones) if _is_vowel(p)]
        if not vowels:
            continue
        stressed = next((i for i in reversed(vowels) if phones[i][-1] in "12"), vowels[-1])
        keys.add("=" + _sound(phones[stressed:]))
        last = vowels[-1]
        if stressed != last and len(vowels) > 2:
            keys.add("~" + _sound(phones[last:]))
        if last == stressed:
            keys.add("~" + _sound(phones[last:]))
        if len(vowels) > 2 and phones[-1] == "IY0" and word.endswith("y"):
            keys.add("~AY")
    if not known or any(_ends_stressed(p) for p in known):
        spelled = re.search(r"[aeiouy]+[^aeiouy]*e?$", re.sub(r"[^a-z]", "", word))
        if spelled and len(spelled.group()) > 2:
            keys.add("~letters " + spelled.group())
    return frozenset(keys)


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
