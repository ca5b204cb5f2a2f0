"""I14: sparse is sparse. Keys, time and memory of LogSparse grow almost with the length, never with its square.

That it equals the dense mask in values and gradients is shown in ``tests/kernels/test_sparse.py`` and, through whole
decoders and packed rows, in ``tests/model/test_attention.py``.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from limbeck.data.batch import Batch
from limbeck.kernels.attention import Span
from limbeck.kernels.sparse import compiled, sparse_attention
from limbeck.model.cache import KVCache
from limbeck.model.patterns import LogSparse, Sliding
from tests.reference.twins import gpt2_config, llama_config, random_decoder

PATTERN = LogSparse(window=32, sinks=4)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return out


def exponent(lengths, costs) -> float:
    return float(np.polyfit(np.log(lengths), np.log(costs), 1)[0])


def test_keys_grow_with_an_exponent_near_one():
    lengths = [1 << n for n in range(10, 16)]
    assert exponent(lengths, [PATTERN.pairs(n) for n in lengths]) < 1.1
    assert 1.9 < exponent(lengths, [n * (n + 1) / 2 for n in lengths]) < 2.1  # what the fit says of dense attention


def test_time_grows_with_an_exponent_of_at_most_1_2():
    lengths = [1024, 2048, 4096, 8192]
    q = torch.zeros(1)
    if compiled(q) is None:
        pytest.skip("no C compiler here")
    costs = []
    for n in lengths:
        q, k, v = (torch.randn(1, 2, n, 16, requires_grad=True) for _ in range(3))
        spent = []
        for _ in range(4):
            begun = time.process_time()
            sparse_attention(q, k, v, [Span(0, 1, 0, n)], PATTERN.reach(n))[0].sum().backward()
            spent.append(time.process_time() - begun)
        costs.append(min(spent))
    assert exponent(lengths, costs) <= 1.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [gpt2_config, llama_config])
def test_no_tensor_is_as_large_as_the_square_of_the_length(make, dtype):
    """Forward and backward, by the compiled pass (fp32) and torch's form (fp64); packed rows too."""
    length = 2048
    model = random_decoder(make(context=length, pattern=(PATTERN, Sliding(window=64, sinks=2)))).to(dtype)
    plain = Batch.of_ids(torch.zeros(1, length, dtype=torch.long))
    documents = torch.tensor([[1] * 1500 + [2] * 500 + [0] * 48], dtype=torch.int32)
    packed = Batch(plain.ids, documents > 0, documents, plain.row_ids, plain.offsets)
    for batch in (plain, packed):
        with Largest() as largest:
            model(batch, read=lambda hidden, head: hidden).sum().backward()
        assert 0 < largest.elements < length * length / 2


@torch.no_grad()
def test_a_decoded_token_reads_as_many_keys_as_it_sees():
    """The whole text is kept; of 1,000 keys a query of LogSparse reads forty."""
    model = random_decoder(gpt2_config(context=1100, pattern=PATTERN))
    cache, ids = KVCache(model.config, 1, 1100), torch.zeros(1, 1000, dtype=torch.long)
    model(Batch.of_ids(ids), cache=cache, at=torch.tensor([999]))
    with Largest() as largest:
        model(Batch.of_ids(ids[:, :1]), cache=cache)
    c = model.config
    assert cache.keys[0].shape[2] == 1101 and PATTERN.slots(1100) == 1100
    listed = PATTERN.key_slots(torch.tensor([1000]), 1100)
    assert listed.shape[1] < 45
    assert largest.elements == cache.keys[0].numel()  # the cache itself, written in place; no larger copy
    assert c.kv_heads * listed.shape[1] * c.head_dim < cache.keys[0].numel() / 20
