from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.data.batch import Batch
from limbeck.errors import DataError, InputError
from limbeck.model.cache import KVCache
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder
from limbeck.model.patterns import Causal, Sliding
from tests.reference.twins import gpt2_config, llama_config, random_decoder

V = 61
CONFIGS = {"gpt2": gpt2_config(V), "llama": llama_config(V)}


def batch(length: int = 9, rows: int = 2) -> Batch:
    ids = torch.randint(0, V, (rows, length), generator=torch.Generator().manual_seed(1))
    return Batch.of_ids(ids, [length, *[length - 2] * (rows - 1)])


def loss_of(model, b):
    logits = model(b)
    return F.cross_entropy(logits.flatten(0, 1), b.next_token_labels().flatten(), reduction="sum")


@pytest.mark.parametrize("name", CONFIGS)
def test_read_gets_hidden_and_head_inside_the_forward(name):
    model, b = random_decoder(CONFIGS[name]), batch()
    inside = []

    def read(hidden, head):
        inside.append(head)
        assert hidden.shape == (2, 9, 32)
        return hidden @ head.weight.T, hidden

    logits, hidden = model(b, read=read)
    assert inside == [model.head] and model.head.weight.shape == (V, 32) and model.head.bias is None
    assert torch.allclose(logits, model(b), atol=1e-6)
    (gradient,) = torch.autograd.grad(hidden.sum(), model.embed.weight)
    assert gradient.abs().sum() > 0


PATTERNS = {"causal": Causal(), "sliding": Sliding(window=3)}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", CONFIGS)
def test_one_column_a_row_is_that_of_the_whole(name, pattern):
    config = CONFIGS[name].model_copy(update={"pattern": PATTERNS[pattern]})
    model, b, at = random_decoder(config, dtype=torch.float64), batch(rows=3), torch.tensor([8, 2, 6])
    rows = torch.arange(3)
    whole, seen = model(b), []
    assert torch.allclose(model(b, at=at)[:, 0], whole[rows, at], rtol=1e-12, atol=1e-12)
    hidden = model(b, at=at, read=lambda h, head: h)
    assert torch.allclose(hidden[:, 0], model(b, read=lambda h, head: h)[rows, at], rtol=1e-12, atol=1e-12)

    parameters = list(model.parameters())
    ours = torch.autograd.grad(model(b, at=at).square().sum(), parameters)
    theirs = torch.autograd.grad(model(b)[rows, at].square().sum(), parameters)
    for a, c in zip(ours, theirs, strict=True):
        assert torch.allclose(a, c, rtol=1e-10, atol=1e-12)
    model.checkpointing = True
    again = torch.autograd.grad(model.train()(b, at=at).square().sum(), parameters)
    for a, c in zip(again, theirs, strict=True):
        assert torch.allclose(a, c, rtol=1e-10, atol=1e-12)

    model.eval()
    hook = model.blocks[-1].ffn.register_forward_hook(lambda m, given, out: seen.append(out.shape[1]))
    assert torch.allclose(model(b, at=at)[:, 0], whole[rows, at], rtol=1e-12, atol=1e-12)
    hook.remove()
    assert seen == [9], "who listens gets every token"


@pytest.mark.parametrize("pattern", PATTERNS)
def test_one_column_a_row_leaves_the_cache_as_the_whole_does(pattern):
    config = gpt2_config(V).model_copy(update={"pattern": PATTERNS[pattern]})
    model, first = random_decoder(config, dtype=torch.float64).eval(), batch(5)
    more = Batch.of_ids(torch.tensor([[3, 4, 5], [6, 7, 8]]), [3, 2])
    caches = [KVCache(config, 2, 12, torch.float64, torch.device("cpu")) for _ in range(2)]
    with torch.no_grad():
        for b, at in ((first, torch.tensor([4, 2])), (more, torch.tensor([2, 1]))):
            whole = model(b, cache=caches[0])[torch.arange(2), at]
            assert torch.allclose(model(b, at=at, cache=caches[1])[:, 0], whole, rtol=1e-12, atol=1e-12)
    for i in range(config.layers):
        assert torch.allclose(caches[0].keys[i], caches[1].keys[i], rtol=1e-12, atol=1e-12)
        assert torch.allclose(caches[0].values[i], caches[1].values[i], rtol=1e-12, atol=1e-12)


def test_one_column_a_row_costs_the_last_layer_one_token():
    model, b, widths = random_decoder(gpt2_config(V)).eval(), batch(), []

    ffn = model.blocks[-1].ffn
    inner = ffn.forward
    ffn.forward = lambda x, *given: widths.append(x.shape[1]) or inner(x, *given)
    with torch.no_grad():
        model(b, at=torch.tensor([8, 6]))
    assert widths == [1]


@pytest.mark.parametrize("name", CONFIGS)
def test_checkpointing_gives_the_same_gradients_and_keeps_fewer_activations(name):
    plain = random_decoder(CONFIGS[name], dtype=torch.float64).train()
    saving = copy.deepcopy(plain)
    saving.checkpointing = True
    b, kept = batch(), {}
    for which, model in {"plain": plain, "saving": saving}.items():
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            loss = loss_of(model, b)
        kept[which] = sum(sizes)
        loss.backward()
    assert kept["saving"] < kept["plain"] / 2
    for (key, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-12, atol=1e-14), key


def test_checkpointing_draws_the_same_dropout_twice():
    model = random_decoder(gpt2_config(V, dropout=0.2), dtype=torch.float64).train()
    saving = copy.deepcopy(model)
    saving.checkpointing = True
    for m in (model, saving):
        torch.manual_seed(5)
        loss_of(m, batch()).backward()
    for p, q in zip(model.parameters(), saving.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-12, atol=1e-14)


def test_checkpointing_rests_in_evaluation():
    model = random_decoder(CONFIGS["llama"])
    model.checkpointing = True
    cache = KVCache(model.config, 1, 9)
    with torch.no_grad():
        steps = [model(Batch.of_ids(column), cache=cache) for column in batch(rows=1).ids.split(1, dim=1)]
        assert torch.allclose(torch.cat(steps, 1), model(batch(rows=1)), atol=1e-5)


def test_dropout_acts_in_training_alone_on_embedding_attention_and_branches(monkeypatch):
    model, b = random_decoder(gpt2_config(V, dropout=0.3)), batch()
    assert torch.equal(model(b), model(b))
    model.train()
    assert not torch.equal(model(b), model(b))
    rates, attention = [], []
    drop, attend = F.dropout, F.scaled_dot_product_attention
    monkeypatch.setattr(F, "dropout", lambda x, p, *a, **k: rates.append(p) or drop(x, p, *a, **k))
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: attention.append(k["dropout_p"]) or attend(*a, **k)
    )
    model(b)
    assert rates == [0.3] * (1 + 2 * 2) and attention == [0.3] * 2
    attention.clear()
    model.eval()(b)
    assert attention == [0.0] * 2


def test_weights_are_drawn_as_published_for_gpt2():
    config = gpt2_config(2000, context=500, hidden_size=128, layers=6)
    model = Decoder(config)
    branch = 0.02 / math.sqrt(2 * 6)
    stds = {"embed.weight": 0.02, "positions.weight": 0.02, "attention.qkv.weight": 0.02, "ffn.up.weight": 0.02,
            "attention.out.weight": branch, "ffn.down.weight": branch}  # fmt: skip
    checked = set()
    for name, parameter in model.named_parameters():
        p = parameter.detach()
        if p.dim() == 2:
            (want,) = (std for suffix, std in stds.items() if name.endswith(suffix))
            assert float(p.std()) == pytest.approx(want, rel=0.03), name
            assert abs(float(p.mean())) < 4 * want / math.sqrt(p.numel()), name
        elif name.endswith("norm.weight"):
            assert torch.equal(p, torch.ones_like(p)), name
        else:
            assert name.endswith("bias") and not p.any(), name
        checked.add(name)
    assert len(checked) == 2 + 6 * 12 + 2


def test_initialise_follows_its_generator():
    model = Decoder(CONFIGS["llama"])
    model.initialise(torch.Generator().manual_seed(3))
    first = copy.deepcopy(model.state_dict())
    model.initialise(torch.Generator().manual_seed(3))
    assert all(torch.equal(first[k], v) for k, v in model.state_dict().items())
    model.initialise(torch.Generator().manual_seed(4))
    assert not torch.equal(first["head.weight"], model.head.weight)


def test_a_loss_at_the_start_is_that_of_a_uniform_guess():
    model = Decoder(gpt2_config(2000)).eval()
    ids = torch.randint(0, 2000, (4, 30))
    b = Batch.of_ids(ids)
    loss = F.cross_entropy(model(b).detach()[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert float(loss) == pytest.approx(math.log(2000), abs=0.05)


def test_past_the_learned_positions_is_bad_input():
    model = random_decoder(gpt2_config(V, context=8))
    model(Batch.of_ids(torch.zeros(1, 8, dtype=torch.long)))
    with pytest.raises(DataError, match="9 tokens is longer than the model's 8 learned positions") as caught:
        model(Batch.of_ids(torch.zeros(1, 9, dtype=torch.long)))
    assert isinstance(caught.value, InputError)
    # What counts is the documents, not the width of the row.
    documents = torch.tensor([[1] * 6 + [2] * 6], dtype=torch.int32)
    packed = Batch.of_ids(torch.zeros(1, 12, dtype=torch.long))
    model(Batch(packed.ids, documents > 0, documents, packed.row_ids, packed.offsets))


def test_past_the_learned_positions_leaves_the_cache_as_it_was():
    model = random_decoder(gpt2_config(V, context=8))
    cache = KVCache(model.config, 1, 20)
    ids = torch.randint(0, V, (1, 8))
    with torch.no_grad():
        model(Batch.of_ids(ids[:, :7]), cache=cache)
        with pytest.raises(DataError):
            model(Batch.of_ids(ids[:, :2]), cache=cache)
        last = model(Batch.of_ids(ids[:, 7:]), cache=cache)
        assert torch.allclose(last[0, 0], model(Batch.of_ids(ids))[0, 7], atol=1e-5)


def test_rotary_positions_have_no_end():
    model = random_decoder(llama_config(V, context=8))
    assert model(Batch.of_ids(torch.zeros(1, 40, dtype=torch.long))).isfinite().all()


def count_by_hand(c: DecoderConfig) -> int:
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    norm = c.hidden_size * (2 if c.norm == "layer" else 1)
    attention = c.hidden_size * q + 2 * c.hidden_size * kv + q * c.hidden_size
    attention += (q + 2 * kv) * c.qkv_bias + c.hidden_size * c.out_bias
    ffn = c.hidden_size * c.ffn_width * (3 if c.gated else 2)
    ffn += (c.ffn_width * (2 if c.gated else 1) + c.hidden_size) * c.ffn_bias
    outside = c.vocab_size * c.hidden_size * (1 if c.tied else 2) + c.context * c.hidden_size * (
        c.positions == "learned"
    )
    return outside + norm + c.layers * (2 * norm + attention + ffn)


SHAPES = {
    **CONFIGS,
    "gpt2-untied": gpt2_config(V, tied=False),
    "qwen-like": llama_config(V, qkv_bias=True, tied=True, head_dim=10),
    "mix": gpt2_config(V, norm="rms", gated=True, kv_heads=1, out_bias=False),
}


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_and_bytes_are_counted(name):
    config = SHAPES[name]
    model = Decoder(config)
    assert model.count_parameters() == count_by_hand(config)
    assert model.count_bytes() == 4 * count_by_hand(config)
    assert model.bfloat16().count_bytes() == 2 * count_by_hand(config)
    model.embed.weight.requires_grad_(False)
    assert model.count_parameters(trainable=True) == count_by_hand(config) - V * config.hidden_size


def test_parameters_of_the_published_sizes():
    with torch.device("meta"):
        small = Decoder(DecoderConfig(vocab_size=50257))
        large = Decoder(DecoderConfig(vocab_size=50257, layers=36, hidden_size=1280, heads=20))
        smol = Decoder(
            DecoderConfig(
                vocab_size=49152, layers=30, hidden_size=576, heads=9, kv_heads=3, ffn_width=1536, positions="rope",
                norm="rms", activation="silu", gated=True, qkv_bias=False, out_bias=False, ffn_bias=False,
            )
        )  # fmt: skip
    assert small.count_parameters() == 124_439_808
    assert large.count_parameters() == 774_030_080
    assert smol.count_parameters() == 134_515_008  # SmolLM2-135M


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("length", [1, 13])
def test_flops_are_those_that_torch_counts(name, length):
    """One token through every linear layer, and its heads against ``length`` keys and values."""
    from torch.utils.flop_counter import FlopCounterMode

    model = random_decoder(SHAPES[name])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module(torch.zeros(1, module.in_features))
        q = torch.zeros(model.config.heads, 1, model.config.head_dim)
        held = torch.zeros(model.config.heads, length, model.config.head_dim)
        for _ in range(model.config.layers):
            (q @ held.transpose(1, 2)).softmax(-1) @ held
    assert model.flops_per_token(length) == counter.get_total_flops()


def test_flops_of_a_window_end_with_it():
    model = Decoder(llama_config(V, pattern=(Sliding(window=4, sinks=1), Causal())))
    full = Decoder(llama_config(V))
    assert model.flops_per_token(5) == full.flops_per_token(5)
    q = model.config.heads * model.config.head_dim
    assert full.flops_per_token(100) - model.flops_per_token(100) == 2 * 2 * q * (100 - 5)


@pytest.mark.parametrize("name", SHAPES)
def test_bytes_of_keys_and_values_are_those_of_the_cache(name):
    model = Decoder(SHAPES[name])
    grown = KVCache(model.config, 1, 11).bytes - KVCache(model.config, 1, 10).bytes
    assert model.kv_bytes_per_token() == grown
    assert model.kv_bytes_per_token(torch.bfloat16) == grown // 2


def test_device_and_dtype():
    model = Decoder(CONFIGS["gpt2"])
    assert model.device == torch.device("cpu") and model.dtype == torch.float32
    assert model.bfloat16().dtype == torch.bfloat16
    with torch.device("meta"):
        assert Decoder(CONFIGS["llama"]).device.type == "meta"


def test_a_copy_stays_tied():
    model = copy.deepcopy(Decoder(CONFIGS["gpt2"]))
    assert model.head.weight is model.embed.weight
