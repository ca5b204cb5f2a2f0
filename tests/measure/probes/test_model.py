"""Generality, general text and calibration against direct sums."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from limbeck.data.batch import Batch, Example, collate
from limbeck.losses.divergence import forward_kl
from limbeck.measure.alarm import Subject
from limbeck.measure.probes.model import Calibration, Generality, GeneralText, calibration_error
from limbeck.model.config import Classes
from limbeck.model.decoder import Decoder
from limbeck.model.heads import with_classes
from tests.reference.small_model import decoder
from tests.reference.small_tokenizer import byte_level


@pytest.fixture
def base() -> Decoder:
    torch.manual_seed(0)
    return decoder()


def shaken(model: Decoder, by: float) -> Decoder:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return other


def test_the_base_itself_has_lost_nothing(base: Decoder) -> None:
    told = Generality.of(base, byte_level(), texts=5, tokens=20)(Subject(base))
    assert told is not None and abs(told.value) < 1e-6 and not told.fired


def test_with_every_token_kept_it_is_the_whole_divergence(base: Decoder) -> None:
    probe = Generality.of(base, byte_level(), texts=5, tokens=20, top_k=10_000)
    other = shaken(base, 0.3)
    told = probe(Subject(other))
    sums = count = 0.0
    for batch in probe.batches:
        mask = batch.prediction_mask()
        with torch.no_grad():
            kl = forward_kl(other(batch)[mask], base(batch)[mask])
        sums, count = sums + kl.sum().item(), count + kl.numel()
    assert told is not None and told.value == pytest.approx(sums / count, rel=1e-5)
    few = Generality.of(base, byte_level(), texts=5, tokens=20, top_k=8)(Subject(other))
    assert few is not None and 0 < few.value <= told.value + 1e-6


def test_it_grows_with_the_distance_and_rings(base: Decoder) -> None:
    probe = Generality.of(base, byte_level(), texts=4, tokens=20)
    values = []
    for by in (0.01, 0.1, 1.0):
        told = probe(Subject(shaken(base, by)))
        assert told is not None
        values.append(told.value)
    assert values == sorted(values) and told.fired and "nats a token" in told.sentence


def test_what_the_base_writes_hangs_on_the_seed_alone(base: Decoder) -> None:
    one, same, other = (Generality.of(base, byte_level(), texts=3, tokens=8, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.batches[0].ids, same.batches[0].ids)
    assert not torch.equal(one.batches[0].ids, other.batches[0].ids)
    assert bool((one.batches[0].ids[:, 0] == byte_level().eos_id).all())


def test_models_of_classes_are_not_asked_of_tokens(base: Decoder) -> None:
    probe = Generality.of(base, byte_level(), texts=2, tokens=4)
    text = GeneralText.of(base, [example([1, 2, 3])])
    classifier = with_classes(copy.deepcopy(base), Classes(labels=("a", "b")))
    assert probe(Subject(classifier)) is None and text(Subject(classifier)) is None
    assert probe(Subject()) is None and text(Subject()) is None and Calibration(())(Subject(base)) is None


def example(ids: list[int], label: int | None = None) -> Example:
    return Example(0, "0", np.array(ids, np.int32), np.ones(len(ids), np.bool_), label=label)


def test_general_text_is_the_rise_over_the_base(base: Decoder) -> None:
    some = [example([1, 2, 3, 4]), example([9, 8, 7])]
    probe = GeneralText.of(base, some, batch_size=1)
    other = shaken(base, 1.0)

    def nats(model: Decoder) -> float:
        out = []
        for e in some:
            ids = torch.from_numpy(e.ids).long()[None]
            logs = model(Batch.of_ids(ids)).log_softmax(-1)[0, :-1]
            out += (-logs.gather(-1, ids[0, 1:, None])).flatten().tolist()
        return sum(out) / len(out)

    told, same = probe(Subject(other)), probe(Subject(base))
    assert told is not None and same is not None
    assert told.value == pytest.approx(nats(other) - nats(base), rel=1e-5) and told.fired
    assert same.value == 0 and not same.fired


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    assert calibration_error(confidence, np.array([1.0, 1, 1, 0])) == pytest.approx((0.05, 0.0))
    assert calibration_error(confidence, np.zeros(4)) == pytest.approx((0.75, 0.75))
    assert calibration_error(np.ones(3), np.ones(3)) == (0.0, 0.0)
    hidden = calibration_error(np.array([0.9, 0.1]), np.array([0.0, 1.0]))  # errs both ways: the mean hides it
    assert hidden == pytest.approx((0.9, 0.0))


def test_calibration_counts_learned_tokens_and_is_silent_on_few(base: Decoder) -> None:
    rows = [[example(torch.randint(1, 280, (30,)).tolist())] for _ in range(4)]
    batch = collate(rows)
    told = Calibration((batch, batch))(Subject(base))
    logits = base(batch).softmax(-1)
    best, labels = logits.max(-1), batch.next_token_labels()
    kept = labels >= 0
    right = (best.indices == labels)[kept].double().numpy()
    expected = calibration_error(best.values[kept].detach().double().numpy(), right)[0]
    assert told is not None and told.value == pytest.approx(expected, rel=1e-5)
    assert told.sentence.startswith("over 232 predicted tokens")
    assert Calibration((collate(rows[:2]),))(Subject(base)) is None  # 58 predictions


def test_a_sure_classifier_that_is_wrong_rings(base: Decoder) -> None:
    classifier = with_classes(base, Classes(labels=("a", "b")))
    with torch.no_grad():
        classifier.head.bias.copy_(torch.tensor([50.0, -50.0]))
    batch = collate([[example([5, 6, 7], label=1)] for _ in range(120)])
    told = Calibration((batch,))(Subject(classifier))
    assert told is not None and told.fired and told.value == pytest.approx(1, abs=1e-3)
    assert "over 120 predicted classes" in told.sentence and "(it is overconfident by 1.000)" in told.sentence
