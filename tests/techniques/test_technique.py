from __future__ import annotations

import pytest

from limbeck.techniques.depth import Depth
from limbeck.techniques.freeze import Freeze
from limbeck.techniques.lora import LoRA
from limbeck.techniques.technique import (
    TrainableShare,
    apply_all,
    convert_all,
    deployed,
    train_everything,
    train_only,
    trainable_share,
    training,
)
from tests.reference.fake_quantized import FakeQuantize
from tests.reference.techniques import base, calibration


def recording(log: list[str]):
    class Recorder(FakeQuantize):
        label: str

        def apply(self, model, calibration=()):
            log.append(f"apply {self.label} {len(calibration)}")
            return model

        def convert(self, model):
            log.append(f"finish {self.label}")
            return model, self if self.label != "b" else None

        def training_skeleton(self, model):
            log.append(f"training {self.label}")
            return model

        def deployed_skeleton(self, model):
            log.append(f"deployed {self.label}")
            return model

    return tuple(Recorder(label=x) for x in "abc")


def test_applied_first_to_last_finished_last_to_first_rebuilt_first_to_last():
    log: list[str] = []
    techniques = recording(log)
    model = base("gpt2")
    assert apply_all(techniques, model, calibration()) is model
    _, deployed_specs = convert_all(techniques, model)
    deployed(deployed_specs, model)
    training(techniques, model)
    assert [r.label for r in deployed_specs] == ["a", "c"]
    assert log == [
        *(f"apply {name} {len(calibration())}" for name in "abc"),
        *("finish c", "finish b", "finish a"),
        *("deployed a", "deployed c"),
        *("training a", "training b", "training c"),
    ]


def test_a_technique_that_promises_nothing_states_no_bytes_and_trains_what_was_trained():
    model = Freeze().apply(base("gpt2"))
    quantize = FakeQuantize(aware=True)
    assert quantize.stated_bytes(model) is None
    assert quantize.trained(model) == Freeze().trained(model)


def test_train_only_and_everything():
    model = base("gpt2")
    train_only(model, {"norm.weight"})
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["norm.weight"]
    train_everything(model)
    assert all(p.requires_grad for p in model.parameters())


def test_the_share_counts_a_tied_head_once():
    model = base("gpt2")
    share = trainable_share(LoRA(rank=1).apply(model))
    assert share.total == sum(p.numel() for p in model.parameters())
    assert share.describe() == {
        "trainable_parameters": share.trainable,
        "parameters": share.total,
        "trainable_share": pytest.approx(share.trainable / share.total),
    }
    assert str(TrainableShare(1500, 1_000_000)) == "1,500 of 1,000,000 parameters are trained (0.150%)"


def test_stated_bytes_of_depth_are_those_of_the_smaller_model():
    model = base("llama")
    for depth in (Depth(layers=2), Depth(layers=(3,)), Depth(layers=4)):
        assert depth.stated_bytes(model) == depth.apply(model).count_bytes()
