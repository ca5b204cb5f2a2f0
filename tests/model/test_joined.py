"""Padding is not computed: rows are laid end to end for the stack, and nobody can tell from what comes out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from limbeck.data.batch import Batch, Example, collate
from limbeck.model import decoder
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder
from limbeck.model.patterns import Sliding

SIZES = {"vocab_size": 61, "hidden_size": 16, "layers": 2, "heads": 4, "context": 80}
CONFIGS = {
    "gpt2": DecoderConfig(**SIZES),
    "llama": DecoderConfig(**SIZES, kv_heads=2, positions="rope", norm="rms", activation="silu", gated=True),
}


def example(i: int, n: int) -> Example:
    ids = torch.randint(0, 61, (n,), generator=torch.Generator().manual_seed(i)).numpy().astype("int32")
    return Example(i, str(i), ids, torch.ones(n, dtype=torch.bool).numpy())


BATCHES = {
    "padded": collate([[example(0, 70)], [example(1, 3)], [example(2, 41)]]),
    "padded left": collate([[example(0, 70)], [example(1, 3)], [example(2, 41)]], left=True),
    "packed": collate([[example(0, 40), example(1, 30)], [example(2, 33)]]),
}


def results(model: Decoder, batch: Batch) -> list[Tensor]:
    """Logits of real tokens, and every gradient of a weighted sum of them."""
    model.zero_grad()
    logits = model(batch)
    assert logits.shape == (*batch.ids.shape, 61)
    real = logits[batch.real]
    g = torch.Generator().manual_seed(3)
    (real * torch.randn(real.shape, generator=g).to(real.dtype)).sum().backward()
    return [real.detach(), *(p.grad.clone() for p in model.parameters())]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what the stack sees."""
    seen: list[tuple[int, ...]] = []
    stack = Decoder._stack
    monkeypatch.setattr(Decoder, "_stack", lambda self, b, *a: seen.append(tuple(b.ids.shape)) or stack(self, b, *a))
    return seen


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("which", BATCHES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_logits_and_gradients_are_those_of_the_padded_batch(
    name: str, which: str, dtype: torch.dtype, limit: float, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("limbeck.model.attention._SCORES_A_SPAN", 1)
    model, batch = Decoder(CONFIGS[name]).to(dtype).train(), BATCHES[which]
    model.checkpointing = checkpointing
    seen = counted(monkeypatch)
    joined = results(model, batch)
    assert seen == [(1, int(batch.real.sum()))]
    monkeypatch.setattr(decoder, "_FULL", 0.0)
    padded = results(model, batch)
    assert seen[1:] == [tuple(batch.ids.shape)]
    for a, b in zip(joined, padded, strict=True):
        assert float((a.double() - b.double()).norm()) <= limit * max(float(b.double().norm()), 1e-3)


def test_a_joined_batch_is_the_same_documents() -> None:
    batch = BATCHES["packed"]
    joined, places = batch.joined()
    assert joined.ids.shape == (1, 103) and torch.equal(batch.ids.flatten()[places], joined.ids[0])
    assert torch.equal(joined.positions()[0], batch.positions().flatten()[places])
    borders = (joined.document_ids[0, 1:] != joined.document_ids[0, :-1]).nonzero()[:, 0] + 1
    assert borders.tolist() == [40, 70] and joined.real.all()
    same = replace(batch, document_ids=torch.ones_like(batch.document_ids))  # one document a row, by the same number
    assert len(same.joined()[0].document_ids.unique()) == 2


@pytest.mark.parametrize("why", ["full", "empty", "dropout", "pattern", "watched", "short in fp32", "cached"])
def test_where_it_is_not_done(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, batch = CONFIGS["gpt2"], BATCHES["padded"]
    if why == "dropout":
        config = config.model_copy(update={"dropout": 0.1})
    if why == "pattern":
        config = config.model_copy(update={"pattern": Sliding(window=8)})
    if why != "short in fp32":
        monkeypatch.setattr("limbeck.model.attention._SCORES_A_SPAN", 1)
    model = Decoder(config).train()
    if why == "watched":
        model.blocks[1].ffn.register_forward_hook(lambda *_: None)
    if why == "full":
        batch = Batch.of_ids(batch.ids)
    if why == "empty":
        batch = replace(batch, document_ids=torch.zeros_like(batch.document_ids), plain=False)
    seen = counted(monkeypatch)
    if why == "cached":
        from limbeck.model.cache import KVCache

        with torch.no_grad():
            model.eval()(batch, cache=KVCache(config, 3, 80))
    else:
        model(batch)
    assert seen == [tuple(batch.ids.shape)]
