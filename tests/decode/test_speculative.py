"""Speculative decoding has the model's own distribution, whatever the draft."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare

from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.generate import generate
from limbeck.decode.session import DecodingSession, evaluating
from limbeck.decode.settings import Decoding
from limbeck.decode.speculative import speculate
from limbeck.errors import ConfigError
from limbeck.formats.load import save_bundle
from limbeck.jobs.recipe import Display as Shown
from limbeck.model.decoder import Decoder
from limbeck.model.patterns import Sliding
from limbeck.verbs.generate import Generate
from tests.reference.small_model import MODERN, decoder, saved
from tests.reference.small_tokenizer import byte_level

TOKENIZER = byte_level()
PROMPTS = [[5, 6, 7], [9, 4, 100, 30, 2]]


def pair() -> tuple[Decoder, Decoder]:
    """A model and a draft that is near it, so that some proposals pass and some do not."""
    model = decoder(**MODERN)
    draft = decoder(**MODERN)
    with torch.no_grad():
        for mine, its in zip(draft.parameters(), model.parameters(), strict=True):
            mine.copy_(its + 0.05 * torch.randn_like(its))
    return model, draft


@pytest.mark.parametrize("proposals", [1, 3, 7])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_is_the_same_text(proposals: int, penalty: float) -> None:
    model, draft = pair()
    how = Decoding(max_new_tokens=20, repetition_penalty=penalty)
    wanted = generate(model, TOKENIZER, PROMPTS, how, end_ids=())
    got, worth = speculate(model, draft, TOKENIZER, PROMPTS, how, proposals=proposals, end_ids=())
    assert [g.ids for some in got for g in some] == [g.ids for some in wanted for g in some]
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours[0].log_prob == pytest.approx(theirs[0].log_prob, rel=1e-5)
    assert 0 < worth.accepted < worth.proposed
    assert worth.tokens == 40 and worth.rounds < 38


def test_the_model_as_its_own_draft_is_always_right() -> None:
    model, _ = pair()
    how = Decoding(max_new_tokens=17, temperature=0.9)
    _, worth = speculate(model, model, TOKENIZER, PROMPTS, how, proposals=3, end_ids=())
    assert worth.acceptance == 1
    assert worth.rounds == 2 * 4  # one token from the prompt, then four a round


def exact(model: Decoder, decoding: Decoding, count: int) -> dict[tuple[int, ...], float]:
    """Probability of every continuation of PROMPTS[0] by ``count`` tokens, by walking the whole tree."""
    from limbeck.decode.sample import distribution

    held: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(count):
        grown: dict[tuple[int, ...], float] = {}
        for ids, p in held.items():
            with evaluating(model):
                after = DecodingSession(model, [[*PROMPTS[0], *ids]], 1).start()
            for token, q in enumerate(distribution(after, decoding)[0].tolist()):
                if q > 0:
                    grown[(*ids, token)] = p * q
        held = grown
    return held


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_k": 4, "top_p": 0.8, "temperature": 1.4}])
def test_samples_have_the_models_distribution_and_not_the_drafts(options: dict[str, float]) -> None:
    model, draft = pair()
    how = Decoding.model_validate({"max_new_tokens": 3, "temperature": 1.0, "samples": 500, **options})
    (some,), worth = speculate(model, draft, TOKENIZER, PROMPTS[:1], how, proposals=2, end_ids=())
    assert worth.acceptance is not None and 0.1 < worth.acceptance < 0.95
    seen = Counter(g.ids for g in some)

    def p_value(of: Decoder) -> float:
        wanted = exact(of, how, 3)
        if not set(seen) <= set(wanted):
            return 0.0
        common = [k for k, p in wanted.items() if p * 500 >= 5]
        counts, expected = [seen[k] for k in common], [500 * wanted[k] for k in common]
        rest = 500 - sum(expected)
        if rest > 1:
            counts, expected = [*counts, 500 - sum(counts)], [*expected, rest]
        return float(chisquare(counts, expected, sum_check=False).pvalue)

    assert p_value(model) > 1e-3
    assert p_value(draft) < 1e-9


def test_it_stops_where_the_model_stops() -> None:
    model, draft = pair()
    how = Decoding(max_new_tokens=20)
    ((first,),) = generate(model, TOKENIZER, PROMPTS[:1], how, end_ids=())
    end = first.ids[6]
    ((wanted,),) = generate(model, TOKENIZER, PROMPTS[:1], how, end_ids=(end,))
    ((got,),), _ = speculate(model, draft, TOKENIZER, PROMPTS[:1], how, proposals=5, end_ids=(end,))
    assert (got.ids, got.stopped, got.text) == (wanted.ids, "end", wanted.text)


def test_learned_positions_are_not_overrun() -> None:
    model, draft = decoder(context=16), decoder(context=16)
    how = Decoding(max_new_tokens=13)
    wanted = generate(model, TOKENIZER, PROMPTS[:1], how, end_ids=())
    got, _ = speculate(model, draft, TOKENIZER, PROMPTS[:1], how, proposals=6, end_ids=())
    assert got[0][0].ids == wanted[0][0].ids


def test_what_cannot_be_is_refused() -> None:
    model, how = decoder(), Decoding(max_new_tokens=3)
    with pytest.raises(ConfigError, match="set beams to 1"):
        speculate(model, model, TOKENIZER, PROMPTS, Decoding(beams=2, max_new_tokens=3))
    with pytest.raises(ConfigError, match="290 tokens and the model 288"):
        speculate(model, decoder(vocab_size=290), TOKENIZER, PROMPTS, how)
    with pytest.raises(ConfigError, match="the draft has a rolling cache"):
        speculate(model, decoder(pattern=Sliding(window=2)), TOKENIZER, PROMPTS, how)


def test_the_verb_takes_a_draft(tmp_path: Path) -> None:
    saved(tmp_path / "model", **MODERN)
    saved(tmp_path / "draft", **MODERN)
    options = {
        "model": str(tmp_path / "model"), "prompt": "once", "dtype": "fp32", "decoding": {"max_new_tokens": 12},
    }  # fmt: skip
    shown = Shown(quiet=True)
    plain = Generate.model_validate(options).run(shown).values
    drafted = Generate.model_validate({**options, "draft": str(tmp_path / "draft"), "proposals": 2}).run(shown).values
    assert drafted["generations"][0]["ids"] == plain["generations"][0]["ids"]
    assert drafted["speculation"]["rounds"] > 0 and drafted["speculation"]["tokens"] == drafted["tokens"]


def test_the_verb_refuses_a_stranger(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    with pytest.raises(ValueError, match="proposals needs a draft"):
        Generate.model_validate({"model": str(tmp_path / "model"), "proposals": 3})
    save_bundle(decoder(), Tokenizer.train(["other words"] * 3, 270), tmp_path / "draft", generation={})
    with pytest.raises(ConfigError, match="another tokenizer"):
        Generate.model_validate(
            {"model": str(tmp_path / "model"), "draft": str(tmp_path / "draft"), "decoding": {"max_new_tokens": 3}}
        ).run(Shown(quiet=True))
    with pytest.raises(ValueError, match="not for beams"):
        Generate.model_validate({"model": "m", "draft": "d", "decoding": {"beams": 2}})
