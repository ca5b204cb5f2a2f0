"""A rolling window with sinks, from the recipe to the text: trained packed, saved, decoded with a cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limbeck.data.batch import Batch
from limbeck.decode.generate import generate
from limbeck.decode.session import DecodingSession, evaluating
from limbeck.decode.settings import Decoding
from limbeck.formats.load import load_bundle
from limbeck.model.patterns import Sliding
from tests.reference.slow_decode import slow_generate
from tests.reference.slow_decoder import slow_logits
from tests.reference.tiny_runs import ARCHITECTURE, PRETRAIN, run

PATTERN = Sliding(window=6, sinks=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("window") / "run"
    shape = {**ARCHITECTURE, "window": PATTERN.window, "sinks": PATTERN.sinks}
    found = run("pretrain", **{**PRETRAIN, "architecture": shape, "probes": "off", "out": str(folder)})
    assert found["data"]["encoding"]["examples"] > 3 * PRETRAIN["train"]["steps"]  # packed: several in a row
    return folder


def test_what_is_saved_is_the_window_and_gives_the_slow_logits(trained: Path) -> None:
    model = load_bundle(str(trained)).model.double()
    assert model.config.pattern == PATTERN
    ids = torch.randint(0, 300, (1, 40))
    with torch.no_grad():
        found = model(Batch.of_ids(ids))[0]
    expected = slow_logits(model.config, model.state_dict(), ids[0].tolist())
    assert (found - expected).abs().max() < 1e-10


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_decoding_with_the_cache_is_decoding_without(trained: Path, dtype: torch.dtype) -> None:
    bundle = load_bundle(str(trained))
    model, tokenizer = bundle.model.to(dtype), bundle.tokenizer
    prompts = [tokenizer.encode("Once upon a time there was a little"), [7], list(range(20, 40))]
    found = generate(model, tokenizer, prompts, Decoding(max_new_tokens=30), batch_size=3)
    for prompt, (g,) in zip(prompts, found, strict=True):
        ids, log_prob = slow_generate(model, prompt, 30, tokenizer.eos_id)
        assert list(g.ids) == ids
        assert g.log_prob == pytest.approx(log_prob, abs=1e-9 if dtype == torch.float64 else 1e-3)


def test_a_session_holds_the_window_and_the_sinks_alone(trained: Path) -> None:
    model = load_bundle(str(trained)).model
    with evaluating(model):
        few, many = (DecodingSession(model, [[1, 2, 3]], new_tokens) for new_tokens in (5, 50))
        assert few._cache.bytes == many._cache.bytes
        many.start()
        before = many._cache.bytes
        for token in range(50):
            many.step([token])
        assert many._cache.bytes == before
        assert sorted(many._cache.held(PATTERN)[0].tolist()) == [-1, 0, 1, *range(53 - 6, 53)]  # -1: the bin
