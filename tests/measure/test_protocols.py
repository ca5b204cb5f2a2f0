"""Named perplexity protocols: each is whole, and refuses another text than its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from limbeck.errors import ConfigError, DataError
from limbeck.formats.load import load_bundle
from limbeck.measure.perplexity import PerplexityProtocol, perplexity
from limbeck.measure.protocols import PROTOCOLS, NamedProtocol, ProtocolName
from tests.reference.small_model import MODERN, saved
from tests.reference.tiny_runs import run


def test_every_name_settles_everything() -> None:
    assert set(PROTOCOLS) == set(get_args(ProtocolName))
    for name, protocol in PROTOCOLS.items():
        s = protocol.settings
        assert s.corpus and s.split and s.context and s.stride and protocol.about, name
        assert str(s.context) in name and (s.stride < s.context) == (name.endswith(("-sliding", "-word", "-byte"))), (
            name
        )
    assert len({str((p.settings, p.about)) for p in PROTOCOLS.values()}) == len(PROTOCOLS)


def _protocol(**over: Any) -> NamedProtocol:
    settings = PerplexityProtocol(corpus="C", split="test", context=8)
    return NamedProtocol(settings, "text", **{"words": 4, "bytes": 17, "unknown": False, **over})


def test_another_text_is_refused_and_other_white_space_is_told() -> None:
    assert _protocol().check({"a": "one two", "b": "three four"}, "f") == ()
    (told,) = _protocol().check({"a": "one  two", "b": "three four"}, "f")
    assert told.startswith("the text has 18 bytes and the published file of C test 17: white space differs")
    with pytest.raises(DataError, match="f has 3 words and is not C test, which has 4"):
        _protocol().check({"a": "one two three"}, "f")
    with pytest.raises(DataError, match="f has <unk> for rare words"):
        _protocol().check({"a": "one <unk> three four"}, "f")
    with pytest.raises(DataError, match="f has no <unk>"):
        _protocol(unknown=True).check({"a": "one two three four"}, "f")
    assert _protocol(words=None, bytes=None, unknown=None).check({"a": "anything"}, "f") == ()


def test_one_flag_measures_under_it(tmp_path: Path) -> None:
    model = saved(tmp_path / "m", **MODERN, context=512)
    text = tmp_path / "stories.txt"
    text.write_text("one dog\n<|endoftext|>\ntwo cats and a dog\n<|endoftext|>\n")
    common: dict[str, Any] = {
        "model": str(model), "data": str(text), "dtype": "fp32", "probes": "off",
        "measuring": {"generate": False}, "task": {"kind": "text", "protocol": "stories-512"},
    }  # fmt: skip
    told = run("evaluate", **common)
    bundle = load_bundle(str(model))
    stories = {"0": "one dog", "1": "two cats and a dog"}
    wanted = perplexity(bundle.model, bundle.tokenizer, stories, PerplexityProtocol(context=512, truncate=True))
    assert next(iter(told["metrics"])) == "perplexity"
    assert told["metrics"]["perplexity"]["value"] == pytest.approx(wanted.value, rel=1e-6)
    protocol = told["protocol"]
    assert (protocol["name"], protocol["corpus"], protocol["context"]) == ("stories-512", "TinyStories", 512)
    with pytest.raises(ConfigError, match="protocol stories-512 has a context of 512, not 64"):
        run("evaluate", **{**common, "measuring": {"context": 64}})
    with pytest.raises(ConfigError, match="protocol stories-512 settles 'stride' itself"):
        run("evaluate", **{**common, "task": {"kind": "text", "protocol": "stories-512", "stride": 4}})
    with pytest.raises(DataError, match="7 words and is not WikiText-2 test, which has 241,211"):
        run("evaluate", **{**common, "task": {"kind": "text", "protocol": "wikitext2-512"}})


@pytest.mark.realdata
def test_the_real_texts_are_known(real_data: Path) -> None:
    folder = real_data / "wikitext2"
    raw, unk = ((folder / name).read_text(encoding="utf-8") for name in ("wiki.test.raw", "test.txt"))
    assert PROTOCOLS["wikitext2-unk-512-word"].check({"x": unk}, "test.txt") == ()
    (told,) = PROTOCOLS["wikitext2-512"].check({"x": raw}, "wiki.test.raw")
    assert "1,287,656 bytes and the published file of WikiText-2 test 1,290,590" in told
    with pytest.raises(DataError, match="in its other form"):
        PROTOCOLS["wikitext2-512"].check({"x": unk}, "test.txt")
