"""Inputs of kernels: the same numbers as the slow form, or a ValueError; never a crash."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.model.decoder import Decoder
from tests.fuzz.limits import bounded, fuzzed
from tests.reference.small_model import decoder

MODELS: dict[int, Decoder] = {}


def _model(layers: int) -> Decoder:
    if layers not in MODELS:
        torch.manual_seed(layers)
        MODELS[layers] = decoder(layers=layers)
    return MODELS[layers]


@fuzzed
@given(
    st.lists(st.lists(st.integers(0, 287), min_size=0, max_size=40), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(1, 12),
)
def test_prompts_of_any_shape(prompts: list[list[int]], samples: int, new: int) -> None:
    from limbeck.decode.generate import generate
    from limbeck.decode.settings import Decoding
    from tests.reference.small_tokenizer import byte_level

    with bounded():
        how = Decoding(
            max_new_tokens=new, temperature=1.0 if samples > 1 else 0.0, samples=samples, truncate_prompts=True
        )
        out = generate(_model(1), byte_level(), prompts, how, batch_size=3)
        assert [len(some) for some in out] == [samples] * len(prompts)
        assert all(len(g.ids) <= new for some in out for g in some)
