"""A cache in int4 and int8, keys and values apart: what is kept, and what a model reads from it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limbeck.data.batch import Batch
from limbeck.decode.generate import generate
from limbeck.decode.settings import Decoding
from limbeck.decode.step import CompiledStep
from limbeck.kernels import native
from limbeck.model.cache import KVCache, KVKinds
from limbeck.model.cache_store import Store
from limbeck.model.decoder import Decoder
from limbeck.model.patterns import Sliding
from tests.reference.small_tokenizer import byte_level
from tests.reference.twins import gpt2_config, llama_config, random_decoder

PAIRS: list[KVKinds] = ["int4", ("int4", "model"), ("model", "int4"), ("int8", "int4"), ("int4", "int8")]


def rounded(x: Tensor, kind: str) -> Tensor:
    """Each vector rounded number by number, as Python computes it."""
    if kind == "model":
        return x
    out = x.contiguous().float().clone()
    for row in out.view(-1, x.shape[-1]):
        if kind == "int8":
            scale = float(row.abs().max()) / 127
            row.copy_((row / scale).round() * scale)
            continue
        for part in row.split(32):
            low = part.min().half().float()
            step = ((part.max() - low) / 15).half().float().clamp(min=2**-14)
            part.copy_(((part - low) / step).round().clamp(0, 15) * step + low)
    return out.to(x.dtype)


class Rounding(KVCache):
    """A cache in the model's dtype of numbers that were rounded before."""

    kinds = ("model", "model")

    def write(self, layer, slots, keys, values) -> None:
        super().write(layer, slots, rounded(keys, self.kinds[0]), rounded(values, self.kinds[1]))


@pytest.mark.parametrize("kind", ["model", "int8", "int4"])
@pytest.mark.parametrize("width", [7, 32, 80])
def test_what_is_kept_comes_back_rounded(kind: str, width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(2, 3, 5, width, generator=generator)
    store = Store([(2, 3, 9, width)] * 2, kind, torch.float32, "cpu")  # type: ignore[arg-type]
    slots = torch.tensor([[8, 0, 3, 1, 7], [2, 4, 6, 8, 0]])
    store.write(0, x, slots)
    store.write(1, x, None)
    wanted = rounded(x, kind)
    assert (store.read_slots(0, slots) - wanted).abs().max() < 1e-6
    assert (store.read(1, 5) - wanted).abs().max() < 1e-6
    store.select(torch.tensor([1, 1]))
    assert (store.read(1, 5) - wanted[[1, 1]]).abs().max() < 1e-6
    vector = {"model": 4 * width, "int8": width + 4, "int4": -(-width // 2) + 4 * -(-width // 32)}[kind]
    assert store.bytes == 2 * 2 * 3 * 9 * vector


@pytest.mark.parametrize("x", [torch.zeros(1, 1, 1, 40), torch.full((1, 1, 1, 40), -3.0)])
def test_vectors_of_one_number_are_kept(x: Tensor) -> None:
    store = Store([(1, 1, 1, 40)], "int4", torch.float32, "cpu")
    store.write(0, x, None)
    assert torch.equal(store.read(0, 1), x)


MODELS = {
    "gpt2": gpt2_config(),
    "llama": llama_config(head_dim=40),
    "window": llama_config(pattern=Sliding(window=6, sinks=1)),
}


def in_steps(model: Decoder, ids: Tensor, cache: KVCache) -> Tensor:
    parts = [ids[:, :5], *ids[:, 5:].split(1, dim=1)]
    return torch.cat([model(Batch.of_ids(part), cache=cache) for part in parts], dim=1)


@pytest.mark.parametrize("kinds", PAIRS, ids=str)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_model_reads_the_rounded_numbers(name: str, kinds: KVKinds) -> None:
    model = random_decoder(MODELS[name], scale=0.2)
    ids = torch.randint(0, 61, (2, 16), generator=torch.Generator().manual_seed(4))
    reference = Rounding(model.config, 2, 16)
    reference.kinds = (kinds, kinds) if isinstance(kinds, str) else kinds
    wanted = in_steps(model, ids, reference)
    exact = in_steps(model, ids, KVCache(model.config, 2, 16))
    cache = KVCache(model.config, 2, 16, kind=kinds)
    found = in_steps(model, ids, cache)
    error = float((wanted - exact).abs().max())
    # fp32 sums in another order may put a number on the other side of a border between two codes
    assert float((found - wanted).abs().max()) <= 0.3 * error
    assert float((found - wanted).abs().mean()) <= 0.02 * float((wanted - exact).abs().mean())
    assert cache.bytes < KVCache(model.config, 2, 16).bytes


@torch.no_grad()
def test_the_compiled_step_serves_what_it_knows() -> None:
    if native.load() is None:
        pytest.skip("no compiler")
    model = random_decoder(MODELS["gpt2"])
    with torch.inference_mode():
        served = {
            k: CompiledStep.of(model, KVCache(model.config, 1, 8, kind=k)) is not None
            for k in ("model", "int8", "int4", ("int8", "int8"), ("int8", "int4"))
        }
    assert served == {"model": True, "int8": True, "int4": False, ("int8", "int8"): True, ("int8", "int4"): False}


def test_the_options_of_decoding_name_keys_and_values() -> None:
    assert Decoding().kv == ("model", "model")
    assert Decoding(cache="int4", kv_keys="int8").kv == ("int8", "int4")
    assert Decoding(kv_values="int4").kv == ("model", "int4")


def test_text_is_generated_from_it() -> None:
    model, tokenizer = random_decoder(llama_config(280)), byte_level(280)
    asked, made = [[1, 2, 3], [4, 5]], []
    for over in ({}, {"cache": "int4"}, {"beams": 2, "kv_values": "int4"}):
        made.append(generate(model, tokenizer, asked, Decoding(max_new_tokens=6, **over)))  # type: ignore[arg-type]
        assert [len(found) for found in made[-1]] == [1, 1]
    assert made[0] != made[1]  # random weights: rounded keys and values choose other tokens, or other probabilities
