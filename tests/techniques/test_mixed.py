"""Mixed precision: the budget, the knapsack, and a deployed spec that measures nothing."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.config import build
from limbeck.data.batch import Batch
from limbeck.errors import ConfigError, TechniqueError
from limbeck.model.decoder import Decoder
from limbeck.techniques.grid import Grid
from limbeck.techniques.lora import LoRA
from limbeck.techniques.mixed import Mixed, allocate, sensitivities
from limbeck.techniques.quantized import matrices
from limbeck.techniques.rtn import RTN
from limbeck.techniques.technique import convert_all
from tests.reference.quantized import batches, decoder, nll, reference_logits

INT4, INT8 = Grid(format="int4"), Grid(format="int8")


@given(st.data())
@settings(max_examples=60)
def test_the_allocation_is_the_best_of_all(data: st.DataObject):
    rows, choices = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    costs = [[data.draw(st.floats(-1, 9)) for _ in range(choices)] for _ in range(rows)]
    sizes = [[data.draw(st.integers(1, 40)) for _ in range(choices)] for _ in range(rows)]
    budget = sum(min(row) for row in sizes) + data.draw(st.integers(0, 60))
    every = [
        sum(c[k] for c, k in zip(costs, picks, strict=True))
        for picks in itertools.product(range(choices), repeat=rows)
        if sum(s[k] for s, k in zip(sizes, picks, strict=True)) <= budget
    ]
    picks = allocate(costs, sizes, budget)
    assert sum(s[k] for s, k in zip(sizes, picks, strict=True)) <= budget
    assert sum(c[k] for c, k in zip(costs, picks, strict=True)) == pytest.approx(min(every))


def test_beyond_the_table_s_steps_the_budget_still_holds():
    sizes = [[1_000_003, 7_000_001 + i] for i in range(9)]
    costs = [[float(i + 1), 0.0] for i in range(9)]
    budget = 9 * 1_000_003 + 4 * 6_010_000
    picks = allocate(costs, sizes, budget)
    assert sum(s[k] for s, k in zip(sizes, picks, strict=True)) <= budget
    assert picks == [0, 0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("cost", ["kl", "nll"])
def test_sensitivity_is_that_of_one_weight_alone(cost: str):
    model, text = decoder(), batches(2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    weights = matrices(model, Mixed(average_bits=5))
    got = sensitivities(model, weights, (INT4, INT8), text, cost)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    name = weights[3].name
    alone = RTN(grid=INT4, overrides={name: INT4, "*": None}).apply(decoder())
    total, tokens = 0.0, 0
    for batch in text:
        keep = batch.next_token_labels() >= 0
        p, q = (reference_logits(m, batch)[keep].double().log_softmax(-1) for m in (decoder(), alone))
        picked = (p - q).gather(1, batch.next_token_labels()[keep][:, None])
        total += float((p.exp() * (p - q)).sum() if cost == "kl" else picked.sum())
        tokens += int(keep.sum())
    assert got[3][0] == pytest.approx(total / tokens, rel=1e-3, abs=1e-6)
    if cost == "kl":
        assert all(row[0] > row[1] > 0 for row in got)


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_budget_is_kept_and_used(method: str, tied: bool):
    low, high = (RTN(grid=g).stated_bytes(decoder(tied=tied)) for g in (INT4, INT8))
    budget = (low + high) // 2
    model = Mixed(byte_budget=budget, method=method).apply(decoder(tied=tied), batches(8))
    assert low < model.count_bytes() <= budget
    grids = {m.layout.kind for m in model.modules() if hasattr(m, "layout")}
    assert grids == {"int4", "int8"}


def test_average_bits_count_scales():
    numbers = sum(m.module.weight.numel() for m in matrices(decoder(), Mixed(average_bits=6)))
    model = Mixed(average_bits=7.0).apply(decoder(), batches(2))
    held = sum(m.layout.bytes for m in model.modules() if hasattr(m, "layout"))
    assert held * 8 <= 7 * numbers
    assert held * 8 > 5 * numbers


def test_more_bytes_never_cost_more():
    wanted = reference_logits(decoder())
    changes = []
    for bits in (6.0, 8.0, 12.0):
        model = Mixed(average_bits=bits).apply(decoder(), batches(2))
        changes.append(float((reference_logits(model) - wanted).norm()))
    assert changes[0] > changes[-1]


def test_the_deployed_spec_rebuilds_without_measuring():
    technique = Mixed(average_bits=7, overrides={"blocks.0.ffn.up": None, "positions": INT8})
    techniques = (technique, LoRA(rank=2))
    model = techniques[1].apply(technique.apply(decoder(), batches(2)))
    finished, (deployed_spec, adapter) = convert_all(techniques, model)
    assert isinstance(deployed_spec, Mixed) and deployed_spec.overrides["blocks.0.ffn.up"] is None
    assert {g for g in deployed_spec.overrides.values() if g} == {INT4, INT8}
    with torch.device("meta"):
        empty = Decoder(finished.config)
    again = build(Mixed, deployed_spec.model_dump(mode="json"))
    empty = adapter.deployed_skeleton(again.deployed_skeleton(empty))
    empty.load_state_dict(finished.state_dict(), strict=True, assign=True)
    assert torch.equal(reference_logits(empty), reference_logits(finished))
    assert again.apply(decoder()).state_dict().keys() == technique.apply(decoder(), batches(1)).state_dict().keys()


def test_grids_that_are_not_chosen_cannot_be_rebuilt():
    for rebuild in (Mixed(average_bits=6).training_skeleton, Mixed(average_bits=6).deployed_skeleton):
        with pytest.raises(TechniqueError, match="not chosen yet"):
            rebuild(decoder())


@pytest.mark.parametrize(
    ("technique", "text", "said"),
    [
        (Mixed(average_bits=6), [], "measures sensitivity on calibration text"),
        (Mixed(average_bits=6), [Batch.of_ids(torch.ones(2, 1))], "predicts no token"),
        (Mixed(average_bits=2), batches(1), "bytes too small for the smallest candidates"),
        (Mixed(byte_budget=1000), batches(1), "bytes too small for the smallest candidates"),
    ],
)
def test_what_cannot_be_met_is_refused(technique: Mixed, text: list[Batch], said: str):
    with pytest.raises(TechniqueError, match=said):
        technique.apply(decoder(), text)


@pytest.mark.parametrize("values", [{}, {"byte_budget": 9, "average_bits": 4}])
def test_one_budget_is_given(values: dict):
    with pytest.raises(ConfigError, match="give byte_budget or average_bits"):
        build(Mixed, values)


def test_a_quantized_model_is_refused():
    with pytest.raises(TechniqueError, match="quantized already: give mixed"):
        Mixed(average_bits=6).apply(RTN().apply(decoder()), batches(1))


def test_the_loss_of_the_mix_lies_between():
    text = batches(1)[0]
    losses = [
        float(nll(t.apply(decoder(), [text]), text).detach())
        for t in (RTN(bits=4), Mixed(average_bits=40), RTN(bits=8))
    ]
    assert losses[1] == pytest.approx(losses[2], abs=1e-3)
