"""I15: under every technique, and QLoRA, changing token t changes no logit before t; told by exact gradients."""

from __future__ import annotations

import pytest
import torch

from limbeck.model.decoder import Decoder
from limbeck.model.patterns import Sliding
from limbeck.techniques.depth import Depth
from limbeck.techniques.freeze import Freeze
from limbeck.techniques.lora import LoRA
from limbeck.techniques.technique import apply_all, convert_all
from tests.reference.fake_quantized import FakeQuantize
from tests.reference.slow_decoder import sees
from tests.reference.techniques import BASES, base, calibration, plain_batch, shake
from tests.reference.twins import random_decoder

STACKS = {
    "lora": (LoRA(rank=2),),
    "lora-fused": (LoRA(rank=2, split=False),),
    "freeze": (Freeze(train="half"),),
    "depth": (Depth(layers=2, rule="importance"),),
    "qlora": (FakeQuantize(), LoRA(rank=2)),
    "depth-lora": (Depth(layers=(0, 2)), LoRA(rank=2, targets="all", merge="never")),
}


def influence(model: Decoder) -> torch.Tensor:
    """(T, T) at (t, s): whether the logits at s depend on the embedding of token t."""
    batch = plain_batch(rows=1, length=8)
    seen: list[torch.Tensor] = []

    def keep(module, args, out):
        seen.append(out.detach().requires_grad_())
        return seen[-1]

    handle = model.embed.register_forward_hook(keep)
    logits = model.eval()(batch)[0]
    handle.remove()
    rows = [torch.autograd.grad(logits[s].sum(), seen[0], retain_graph=True)[0][0] for s in range(8)]
    return torch.stack(rows, dim=1).abs().sum(-1) > 0


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("stack", STACKS)
def test_no_logit_depends_on_a_later_token(stack, name, finished):
    model = apply_all(STACKS[stack], base(name), calibration())
    shake(model)
    if finished:
        model, _ = convert_all(STACKS[stack], model)
    later = torch.ones(8, 8).tril(-1).bool()
    found = influence(model)
    assert not found[later].any()
    assert found[~later].all()


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("stack", STACKS)
def test_a_window_with_sinks_stays_one(stack, name, finished):
    """What the logits depend on is what so many layers of the pattern pass on, no more and no less."""
    pattern = Sliding(window=2, sinks=1)
    config = BASES[name].model_copy(update={"pattern": pattern})
    model = apply_all(STACKS[stack], random_decoder(config, scale=0.1), calibration())
    shake(model)
    if finished:
        model, _ = convert_all(STACKS[stack], model)
    one = torch.tensor([[sees(pattern, s, t) for s in range(8)] for t in range(8)]).double()
    reached = torch.linalg.matrix_power(one, model.config.layers) > 0
    assert not reached[torch.ones(8, 8).triu().bool()].all()  # narrower than causal
    assert torch.equal(influence(model), reached)
