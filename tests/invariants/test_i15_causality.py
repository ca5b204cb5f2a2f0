"""I15: changing token t changes no logit before t, for every pattern; and it does change one at t."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.batch import Batch
from limbeck.model.patterns import AnyPattern, Causal, LogSparse, Sliding, Strided
from tests.reference.slow_decoder import sees
from tests.reference.twins import gpt2_config, llama_config, random_decoder

V, T = 61, 14
EXAMPLES = {
    "causal": Causal(),
    "sliding": Sliding(window=3),
    "sliding-sinks": Sliding(window=3, sinks=2),
    "mixed": (Sliding(window=3, sinks=1), Causal()),
    "log-sparse": LogSparse(window=2, sinks=1),
    "log-sparse-restart": LogSparse(window=1, restart=6),
    "strided": Strided(window=2, stride=4),
    "dilated": Strided(window=1, stride=3, keys=2),
    "nearer-sinks": Sliding(window=3, sinks=2, sink_distance="cache"),
}


def kinds() -> set[str]:
    union = get_args(AnyPattern)[0]
    members = get_args(union) or (union,)
    return {member.model_fields["kind"].default for member in members}


def test_every_kind_of_pattern_has_an_example_here():
    """A new pattern is enrolled by adding it above; forgetting that fails."""
    listed = [p for example in EXAMPLES.values() for p in (example if isinstance(example, tuple) else (example,))]
    assert {p.kind for p in listed} == kinds()


@torch.no_grad()
def logits(model, ids):
    return model(Batch.of_ids(ids))[0]


@pytest.mark.parametrize("make", [gpt2_config, llama_config])
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_token_changes_no_logit_before_it(name, make):
    model = random_decoder(make(V, pattern=EXAMPLES[name]), dtype=torch.float64)
    ids = torch.randint(0, V, (1, T))
    before = logits(model, ids)
    for t in range(T):
        changed = ids.clone()
        changed[0, t] = (changed[0, t] + 1) % V
        after = logits(model, changed)
        assert torch.equal(before[:t], after[:t])
        assert not torch.allclose(before[t], after[t])


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_gradient_flows_to_a_later_token(name):
    model = random_decoder(gpt2_config(V, pattern=EXAMPLES[name]), dtype=torch.float64)
    caught = []
    hook = model.blocks[0].register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    out = model(Batch.of_ids(torch.randint(0, V, (1, T))))[0]
    hook.remove()
    for t in range(T):
        (gradient,) = torch.autograd.grad(out[t].sum(), caught[0], retain_graph=True)
        reach = gradient[0].abs().sum(-1) > 0
        assert reach[t] and not reach[t + 1 :].any()


@pytest.mark.parametrize("name", EXAMPLES)
def test_one_layer_sees_exactly_what_its_pattern_says(name):
    """With a single layer the gradient reaches the visible tokens and no other."""
    pattern = EXAMPLES[name] if not isinstance(EXAMPLES[name], tuple) else EXAMPLES[name][0]
    model = random_decoder(gpt2_config(V, layers=1, pattern=pattern), dtype=torch.float64)
    caught = []
    hook = model.blocks[0].register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    out = model(Batch.of_ids(torch.randint(0, V, (1, T))))[0]
    hook.remove()
    for t in range(T):
        (gradient,) = torch.autograd.grad(out[t].sum(), caught[0], retain_graph=True)
        seen = (gradient[0].abs().sum(-1) > 0).tolist()
        assert seen == [sees(pattern, t, s) for s in range(T)]


@given(
    st.sampled_from(sorted(EXAMPLES)),
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.integers(0, 5),
)
def test_documents_of_a_packed_row_are_blind_to_one_another(name, lengths, padding):
    """Packed logits equal those of each document alone, padding included (I7, model side)."""
    model = random_decoder(llama_config(V, pattern=EXAMPLES[name]), dtype=torch.float64)
    ids = torch.randint(0, V, (1, sum(lengths) + padding))
    documents = [i + 1 for i, n in enumerate(lengths) for _ in range(n)] + [0] * padding
    plain = Batch.of_ids(ids)
    document_ids = torch.tensor([documents], dtype=torch.int32)
    packed = Batch(ids, document_ids > 0, document_ids, plain.row_ids, plain.offsets)
    with torch.no_grad():
        together = model(packed)[0]
    assert torch.isfinite(together).all()
    at = 0
    for n in lengths:
        alone = logits(model, ids[:, at : at + n])
        assert (together[at : at + n] - alone).abs().max() < 1e-11
        at += n
