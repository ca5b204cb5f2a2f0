"""The shared laws: every registered technique, every example of it, both families of decoder."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from limbeck.config import Config, build, dump, parse
from limbeck.errors import TechniqueError
from limbeck.model.decoder import Decoder
from limbeck.techniques.table import TECHNIQUES, AnyTechnique, describe
from limbeck.techniques.technique import Technique, apply_all, convert_all, deployed, training
from tests.reference.techniques import BASES, EXAMPLES, base, calibration, logits, plain_batch, shake

CASES = [
    pytest.param(technique, name, id=f"{kind}{i}-{name}")
    for kind, examples in EXAMPLES.items()
    for i, technique in enumerate(examples)
    for name in BASES
]
every = pytest.mark.parametrize(("technique", "name"), CASES)
identical = pytest.mark.parametrize(("technique", "name"), [c for c in CASES if c.values[0].identity])
stating = pytest.mark.parametrize(
    ("technique", "name"), [c for c in CASES if type(c.values[0]).stated_bytes is not Technique.stated_bytes]
)
tolerant = pytest.mark.parametrize(
    ("technique", "name", "dtype"),
    [
        pytest.param(*c.values, dtype, id=f"{c.id}-{dtype}")
        for c in CASES
        for dtype in ("float32", "float64", "bfloat16")
        if dtype in c.values[0].tolerance
    ],
)


class Holder(Config):
    techniques: tuple[AnyTechnique, ...] = ()


def structure(model: Decoder) -> dict[str, tuple]:
    return {key: (tuple(x.shape), x.dtype) for key, x in model.state_dict().items()}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max())


def test_every_registered_technique_has_examples():
    assert set(EXAMPLES) == set(TECHNIQUES)
    for kind, examples in EXAMPLES.items():
        assert examples, kind
        assert all(type(e) is TECHNIQUES[kind] for e in examples)


def test_names_tags_and_descriptions_agree():
    for name, kind in TECHNIQUES.items():
        assert kind.name == name == kind.model_fields["kind"].default
        assert len(describe()[name]) > 10


def test_every_example_survives_yaml_and_json():
    for technique in itertools.chain(*EXAMPLES.values()):
        held = Holder(techniques=(technique,))
        assert build(Holder, parse(dump(held), "here")) == held
        assert build(Holder, json.loads(held.model_dump_json())) == held
        assert type(build(Holder, parse(dump(held), "here")).techniques[0]) is type(technique)


@every
def test_shapes_dtype_and_causality_are_kept(technique: Technique, name: str):
    before = base(name)
    wanted = logits(before)
    model = technique.apply(before, calibration())
    shake(model)
    got = logits(model)
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    batch = plain_batch()
    changed = batch.ids.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 61
    again = logits(model, replace(batch, ids=changed))
    assert torch.equal(again[:, :4], got[:, :4])
    assert not torch.equal(again[:, 4:], got[:, 4:])


@identical
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_identity_where_promised(technique: Technique, name: str, dtype: torch.dtype):
    before = base(name, dtype=dtype)
    wanted = logits(before)
    assert torch.equal(logits(technique.apply(before, calibration())), wanted)


@tolerant
def test_finish_stays_within_its_tolerance(technique: Technique, name: str, dtype: str):
    model = technique.apply(base(name, dtype=getattr(torch, dtype)), calibration())
    shake(model, scale=0.005 if dtype == "bfloat16" else 0.05)  # a larger change saturates, where rounding is chaos
    wanted = logits(model)
    finished, _ = technique.convert(model)
    assert relative(wanted, logits(finished)) <= technique.tolerance[dtype]


@every
def test_training_skeleton_takes_the_training_state(technique: Technique, name: str):
    model = technique.apply(base(name), calibration())
    shake(model)
    skeleton = technique.training_skeleton(base(name, seed=9))
    assert structure(skeleton) == structure(model)
    assert {n: p.requires_grad for n, p in skeleton.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }
    skeleton.load_state_dict(model.state_dict(), strict=True)
    if skeleton.config == model.config:
        assert torch.equal(logits(skeleton), logits(model))


@every
def test_deployed_skeleton_takes_the_saved_model(technique: Technique, name: str):
    model = technique.apply(base(name), calibration())
    shake(model)
    finished, deployed_spec = technique.convert(model)
    plain = Decoder(finished.config)
    rebuilt = plain if deployed_spec is None else deployed_spec.deployed_skeleton(plain)
    assert structure(rebuilt) == structure(finished)
    rebuilt.load_state_dict(finished.state_dict(), strict=True)
    assert torch.equal(logits(rebuilt), logits(finished))


@pytest.mark.parametrize("kind", sorted(TECHNIQUES))
def test_only_a_technique_with_a_deployed_spec_rebuilds_one(kind: str):
    if TECHNIQUES[kind].deployed_skeleton is Technique.deployed_skeleton:
        with pytest.raises(TypeError, match=f"{kind} leaves no deployed spec"):
            EXAMPLES[kind][0].deployed_skeleton(base("gpt2"))
        for technique in EXAMPLES[kind]:
            assert technique.convert(technique.apply(base("gpt2"), calibration()))[1] is None
    else:
        finished = [t.convert(t.apply(base("gpt2"), calibration())) for t in EXAMPLES[kind]]
        assert any(deployed_spec is not None for _, deployed_spec in finished)


@every
def test_gradients_only_where_declared(technique: Technique, name: str):
    model = technique.apply(base(name), calibration()).train()
    declared = technique.trained(model)
    assert declared
    assert {n for n, p in model.named_parameters() if p.requires_grad} == declared
    model(plain_batch()).logsumexp(-1).sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == declared


@every
def test_finish_leaves_nothing_frozen(technique: Technique, name: str):
    finished, _ = technique.convert(technique.apply(base(name), calibration()))
    assert all(p.requires_grad for p in finished.parameters() if p.is_floating_point())


@stating
def test_measured_bytes_are_within_those_stated(technique: Technique, name: str, tmp_path):
    plain = base(name)
    stated = technique.stated_bytes(plain)
    finished, _ = technique.convert(technique.apply(plain, calibration()))
    unique = {id(x): (key, x) for key, x in reversed(finished.state_dict(keep_vars=True).items())}
    save_file({key: x.detach().contiguous() for key, x in unique.values()}, str(tmp_path / "x.safetensors"))
    measured = sum(x.numel() * x.element_size() for x in load_file(str(tmp_path / "x.safetensors")).values())
    assert measured == finished.count_bytes()
    assert measured <= stated


@every
def test_a_second_application_is_refused_or_works(technique: Technique, name: str):
    model = technique.apply(base(name), calibration())
    before = structure(model)
    try:
        again = technique.apply(model, calibration())
    except TechniqueError as error:
        assert structure(model) == before  # refused before anything was changed
        assert len(str(error)) > 20
    else:
        assert bool(logits(again).isfinite().all())


PAIRS = [
    pytest.param((a, b), name, id=f"{a.name}{i}-{b.name}{j}-{name}")
    for (k, (i, a)), (m, (j, b)) in itertools.product(
        [(k, x) for k, examples in EXAMPLES.items() for x in list(enumerate(examples))[::2]], repeat=2
    )
    for name in BASES
    if k != m
]


@pytest.mark.parametrize(("pair", "name"), PAIRS)
def test_techniques_compose_as_a_tuple(pair: tuple[Technique, ...], name: str):
    try:
        model = apply_all(pair, base(name), calibration())
    except TechniqueError as error:
        assert str(error)  # such as blocks that depth took away
        return
    assert {n for n, p in model.named_parameters() if p.requires_grad} == pair[-1].trained(model)
    assert structure(training(pair, base(name, seed=9))) == structure(model)
    shake(model)
    wanted = logits(model)
    finished, deployed_specs = convert_all(pair, model)
    worst = sum(t.tolerance["float32"] for t in pair)
    assert relative(wanted, logits(finished)) <= worst
    rebuilt = deployed(deployed_specs, Decoder(finished.config))
    assert structure(rebuilt) == structure(finished)
    rebuilt.load_state_dict(finished.state_dict(), strict=True)
    assert torch.equal(logits(rebuilt), logits(finished))
