"""I25: a perplexity carries its protocol, and under one protocol it is transformers' number."""

from __future__ import annotations

import pytest
import torch

from limbeck.formats.load import load_bundle
from limbeck.measure.perplexity import PerplexityProtocol, perplexity
from tests.reference.slow_perplexity import transformers_nll
from tests.reference.small_tokenizer import byte_level
from tests.reference.twins import gpt2_config, hf_twin, llama_config, random_decoder

TOKENIZER = byte_level()
TEXTS = {str(n): t for n, t in enumerate([
    "the cat sat on the mat, and the dog ran to the end of the road. " * 3,
    "été à la mer 🌊 naïve café, the end.",
    "and so to the sea",
])}  # fmt: skip


@pytest.mark.parametrize("family", [gpt2_config, llama_config])
@pytest.mark.parametrize(("context", "stride"), [(32, 32), (32, 8), (64, 16)])
def test_a_stream_is_transformers(family, context, stride):
    model = random_decoder(family(TOKENIZER.vocab_size), 2)
    protocol = PerplexityProtocol(mode="stream", context=context, stride=stride, begin=False)
    found = perplexity(model, TOKENIZER, TEXTS, protocol)
    nll, tokens = transformers_nll(hf_twin(model), TOKENIZER.encode("\n\n".join(TEXTS.values())), context, stride)
    assert found.total("tokens") == tokens
    assert found.nats_per("token") == pytest.approx(nll / tokens, rel=1e-5)


@pytest.mark.parametrize("family", [gpt2_config, llama_config])
def test_documents_after_the_begin_token_are_transformers(family):
    model = random_decoder(family(TOKENIZER.vocab_size), 2)
    twin = hf_twin(model)
    found = perplexity(model, TOKENIZER, TEXTS, PerplexityProtocol(context=48, truncate=True))
    for name, text in TEXTS.items():
        ids = [TOKENIZER.bos_id, *TOKENIZER.encode(text)][:48]
        nll, tokens = transformers_nll(twin, ids, 48, 48)
        row = found.scores.select([name])
        assert row["tokens"][0] == tokens and row["nll"][0] == pytest.approx(nll, rel=1e-5)


def test_protocols_differ_and_say_so():
    model = random_decoder(gpt2_config(TOKENIZER.vocab_size), 2)
    protocols = [
        PerplexityProtocol(),
        PerplexityProtocol(begin=False),
        PerplexityProtocol(end=True),
        PerplexityProtocol(context=16),
        PerplexityProtocol(context=16, stride=4),
        PerplexityProtocol(mode="stream"),
        PerplexityProtocol(unit="word"),
    ]
    found = [perplexity(model, TOKENIZER, TEXTS, p) for p in protocols]
    assert len({f.value for f in found}) == len(protocols)
    assert len({str(f.describe()["protocol"]) for f in found}) == len(protocols)


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "nats", "tokens"), [("stories260K", 1.30498, 36664), ("models/base-14m-gpt2", 3.24382, 20613)]
)
def test_reference_losses_on_stories(real_data, name, nats, tokens):
    bundle = load_bundle(str(real_data / name))
    text = (real_data / "tinystories" / "valid.txt").read_text(encoding="utf-8")
    stories = [story.strip() for story in text.split("<|endoftext|>") if story.strip()][:100]
    documents = {str(n): story for n, story in enumerate(stories)}
    found = perplexity(bundle.model, bundle.tokenizer, documents, PerplexityProtocol(context=512, truncate=True))
    assert found.total("tokens") == tokens
    assert found.nats_per("token") == pytest.approx(nats, rel=1e-5)


@pytest.mark.realdata
def test_reference_loss_on_wikitext(real_data):
    bundle = load_bundle(str(real_data / "models" / "base-14m-gpt2"))
    text = (real_data / "wikitext2" / "wiki.test.raw").read_text(encoding="utf-8")
    protocol = PerplexityProtocol(corpus="WikiText-2", split="test", mode="stream", begin=False)
    found = perplexity(bundle.model, bundle.tokenizer, {"wiki.test.raw": text}, protocol, batch_size=8)
    assert (found.total("tokens"), found.total("text_tokens"), found.total("bytes")) == (354488, 355182, 1287656)
    assert found.total("words") == len(text.split())
    assert found.nats_per("token") == pytest.approx(4.98364, rel=1e-5)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["stories260K", "models/base-14m-gpt2"])
@pytest.mark.parametrize("stride", [256, 512])
def test_real_checkpoints_are_transformers_under_two_protocols(real_data, name, stride):
    from transformers import AutoModelForCausalLM

    bundle = load_bundle(str(real_data / name))
    twin = AutoModelForCausalLM.from_pretrained(real_data / name, dtype=torch.float32)
    text = (real_data / "tinystories" / "valid.txt").read_text(encoding="utf-8")[:8000]
    protocol = PerplexityProtocol(mode="stream", context=512, stride=stride, begin=False)
    found = perplexity(bundle.model, bundle.tokenizer, {"x": text}, protocol)
    nll, tokens = transformers_nll(twin, bundle.tokenizer.encode(text), 512, stride)
    assert found.total("tokens") == tokens
    assert found.nats_per("token") == pytest.approx(nll / tokens, rel=1e-4)
