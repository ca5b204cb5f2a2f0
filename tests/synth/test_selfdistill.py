"""Self-distillation in rounds, its arms and their comparison, on a toy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.data.rows import Row, Rows
from limbeck.data.toy.table import toy_rows
from limbeck.decode.settings import Decoding
from limbeck.errors import DataError
from limbeck.formats.load import Bundle
from limbeck.model.decoder import Decoder
from limbeck.synth.arms import labelled, own_samples
from limbeck.synth.candidates import candidates, first_sentence
from limbeck.synth.collapse import collapsed, variety
from limbeck.synth.proximity import MutualLikelihood, PooledStates, Scorer
from limbeck.synth.rounds import Drawing, Proximity, Rounds, make_rounds, tune_generator
from limbeck.synth.selfdistill import SelfDistilling, self_distill
from limbeck.tasks.paraphrase import Paraphrase
from limbeck.train.settings import TrainSettings
from tests.reference.task_models import small, tokenizer

FAST = TrainSettings(learning_rate=3e-3, precision="fp32", log_every=1000)


def rows(count: int, seed: int = 0) -> Rows:
    return toy_rows("paraphrase", size=count, seed=seed) if seed else toy_rows("paraphrase", size=count)


def positives(some: Rows) -> Rows:
    return Rows.of([r for r in some if r.fields["is_duplicate"] == 1], some.source)


def restater(steps: int = 60) -> Decoder:
    """A small model that has learned to restate toy questions."""
    model = small(hidden_size=32, layers=2, heads=2)
    pairs = positives(rows(400))
    tune_generator(
        model, tokenizer(), pairs, "\nIn other words:", FAST.model_copy(update={"steps": steps}), batch_size=16, seed=0
    )
    return model.eval()


def test_the_first_sentence_is_one_line_without_what_follows() -> None:
    assert first_sentence(" How is it? And that\nmore") == "How is it?"
    assert (
        first_sentence("no end of it") == "no end of it" and first_sentence("\n x") == "" and first_sentence("") == ""
    )
    assert first_sentence("At 3.5 miles. Next") == "At 3.5 miles."


def slow_gain(model: Decoder, a: str, b: str, bridge: str) -> float:
    """log p(b | a) - log p(b), a token at a time."""
    tok = tokenizer()
    ids = tok.encode(f" {b}", continues=True)

    def log_prob(before: list[int]) -> float:
        total = 0.0
        for k, token in enumerate(ids):
            logits = model(_batch([*before, *ids[:k]]))[0, -1].double().log_softmax(dim=-1)
            total += float(logits[token])
        return total

    first = [tok.bos_id if tok.bos_id is not None else tok.eos_id]
    with torch.no_grad():
        return (log_prob([*first, *tok.encode(a + bridge)]) - log_prob(first)) / len(ids)


def _batch(ids: list[int]) -> Any:
    from limbeck.data.batch import Batch

    return Batch.of_ids(torch.tensor([ids]))


def test_mutual_likelihood_is_the_definition_in_both_directions() -> None:
    model = small()
    scorer = Scorer(model, tokenizer())
    pairs = [
        ("What do cats eat?", "What is the usual food of cats?"),
        ("Are bats dangerous?", "How do I get to Oakby?"),
    ]
    want = [min(slow_gain(model, a, b, scorer.bridge), slow_gain(model, b, a, scorer.bridge)) for a, b in pairs]
    assert np.allclose(scorer.mutual(pairs), want, atol=1e-5)
    assert scorer.mutual([("a", ""), ("a " * 200, "b")]).tolist() == [-np.inf, -np.inf]


def test_pooled_states_are_means_over_real_tokens_whatever_the_batch() -> None:
    model, tok = small(), tokenizer()
    texts = ["What do cats eat?", "", "Is chess expensive?", "How do I get to Oakby and how long does it take?"]
    many, one = Scorer(model, tok, batch_size=4).states(texts), Scorer(model, tok, batch_size=1).states(texts)
    assert np.allclose(many, one, atol=1e-6) and not many[1].any()
    with torch.no_grad():
        hidden = model(_batch(tok.encode(texts[0])), read=lambda h, head: h)[0]
    assert np.allclose(many[0], hidden.double().mean(dim=0).numpy(), atol=1e-6)
    scorer = Scorer(model, tok).centred(texts)
    a, b = (scorer.states([t])[0] - scorer.center for t in (texts[0], texts[2]))
    assert scorer.similarities([(texts[0], texts[2])])[0] == pytest.approx(
        a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    )
    assert scorer.similarities([("x", "")]).tolist() == [0] and scorer.similarities([]).shape == (0,)


def test_filters_by_proximity_keep_what_is_near() -> None:
    model = restater()
    scorer = Scorer(model, tokenizer()).centred([r.fields["sentence1"] for r in rows(100)])
    some = Rows.of(
        [
            Row("near", {"sentence1": "What do cats eat?", "sentence2": "What is the usual food of cats?"}),
            Row("far", {"sentence1": "What do cats eat?", "sentence2": "How do I get to Oakby?"}),
        ],
        "pairs",
    )
    values = scorer.mutual([(r.fields["sentence1"], r.fields["sentence2"]) for r in some])
    assert values[0] > values[1]  # the model has learned what a restatement is
    middle = float(values.mean())
    assert set(MutualLikelihood(scorer, middle).drops(some)) == {"far"}
    cosines = scorer.similarities([(r.fields["sentence1"], r.fields["sentence2"]) for r in some])
    low = int(cosines.argmin())
    assert set(PooledStates(scorer, float(cosines.mean())).drops(some)) == {some[low].id}


def test_candidates_pair_restatements_with_the_context_and_continuations_with_each_other() -> None:
    model, decoding = small(), Decoding(max_new_tokens=12, temperature=1.0, samples=3, seed=4)
    contexts = ["What do cats eat?", "Is chess expensive?", "far too long " * 100]
    restated = candidates(model, tokenizer(), contexts, decoding)
    assert {r.fields["sentence1"] for r in restated} <= set(contexts[:2]) and all(
        r.fields["sentence2"] for r in restated
    )
    went_on = candidates(model, tokenizer(), contexts, decoding, way="continue")
    assert {r.fields["context"] for r in went_on} <= set(contexts[:2])
    assert all(r.fields["sentence1"] != r.fields["sentence2"] for r in went_on)
    assert candidates(model, tokenizer(), contexts, decoding).hash == restated.hash
    assert len(candidates(model, tokenizer(), contexts[2:], decoding)) == 0


def test_collapse_is_told_from_equal_numbers_of_texts() -> None:
    fresh = [f"{r.fields['sentence1']} {i}" for i, r in enumerate(rows(60))]
    assert collapsed(fresh, fresh) == [] and collapsed(fresh[:1], fresh) == []
    told = " ".join(collapsed(["What do cats eat?"] * 60, fresh))
    assert "distinct bigrams fell" in told and "self-BLEU rose" in told
    assert "mean length" in " ".join(collapsed([" ".join([t] * 4) for t in fresh], fresh))
    assert collapsed(fresh[:30], fresh) == []  # fewer texts alone are no collapse
    assert variety([]).texts == 0 and variety(["a b"]).self_bleu == 0 and variety(fresh, limit=5).texts == 5


def test_negatives_take_the_restatement_of_the_nearest_other_context() -> None:
    pairs = Rows.of(
        [Row(f"p{i}", {"sentence1": a, "sentence2": b, "context": a}) for i, (a, b) in enumerate(
            [("What do cats eat?", "cat food?"), ("What do owls eat?", "owl food?"), ("Is chess expensive?", "costs?")]
        )],
        "pairs",
    )  # fmt: skip
    scorer = Scorer(small(), tokenizer())
    made = labelled(pairs, scorer)
    assert [r.fields["is_duplicate"] for r in made] == [1, 1, 1, 0, 0, 0]
    negative = {r.fields["sentence1"]: r.fields["sentence2"] for r in made if not r.fields["is_duplicate"]}
    right = {r.fields["sentence1"]: r.fields["sentence2"] for r in pairs}
    assert all(negative[a] != right[a] and negative[a] in right.values() for a in right)
    assert len(labelled(Rows.of(pairs.rows[:1], "one"), scorer)) == 1  # nothing to be a negative


def test_rounds_yield_pairs_that_repeat_nothing_and_stop(tmp_path: Path) -> None:
    model, real, valid = small(hidden_size=32), positives(rows(300)), rows(60, seed=9)
    settings = Rounds(
        rounds=2, contexts=40, warm_epochs=6, tuning_epochs=1, least_yield=0.0, least_gain=-10,
        drawing=Drawing(max_new_tokens=24, temperature=0.8, samples=4),
        proximity=Proximity(mutual=-10, cosine=-1, edit_most=1, length_ratio=0.2),
    )  # fmt: skip
    contexts = [str(r.fields["sentence1"]) for r in rows(300)]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    lines: list[str] = []
    found = make_rounds(
        model, tokenizer(), real, settings, FAST, contexts=contexts, held_out=positives(valid),
        against={"valid": valid}, say=lines.append,
    )  # fmt: skip
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())  # the judge is left as it is
    assert len(found.rounds) == 2 and found.stopped == "rounds" and len(lines) == 2 and len(found.losses) == 4
    assert found.losses[1] < found.losses[0]  # warmed up
    keys = [tuple(sorted((r.fields["sentence1"].lower(), r.fields["sentence2"].lower()))) for r in found.pairs]
    assert len(keys) == len(set(keys)) > 0
    sides = {str(r.fields[s]) for r in valid for s in ("sentence1", "sentence2")}
    assert not any(r.fields[s] in sides for r in found.pairs for s in ("sentence1", "sentence2"))
    assert [s.name for s in found.rounds[1].found.steps][6:8] == ["earlier rounds", "overlap"]
    again = make_rounds(
        model, tokenizer(), real, settings, FAST, contexts=contexts, held_out=positives(valid), against={"valid": valid}
    )
    assert again.pairs.hash == found.pairs.hash and again.losses == found.losses


def test_rounds_stop_when_yield_or_gain_dries_up() -> None:
    model, real = small(), positives(rows(60))
    contexts = [str(r.fields["sentence1"]) for r in rows(60)]
    dry = Rounds(
        rounds=3,
        contexts=5,
        warm_epochs=0,
        proximity=Proximity(mutual=50),
        drawing=Drawing(max_new_tokens=8, temperature=1.0),
    )
    found = make_rounds(model, tokenizer(), real, dry, FAST, contexts=contexts)
    assert found.stopped == "yield" and len(found.rounds) == 1 and len(found.pairs) == 0 and found.steps == 0
    flat = Rounds(
        rounds=3, contexts=10, warm_epochs=0, least_yield=0, least_gain=100,
        proximity=Proximity(mutual=-50, cosine=-1, edit_most=1, length_ratio=0, least_words=1),
        drawing=Drawing(max_new_tokens=8, temperature=1.0, samples=4),
    )  # fmt: skip
    found = make_rounds(model, tokenizer(), real, flat, FAST, contexts=contexts, held_out=real)
    assert found.stopped == "gain" and len(found.rounds) == 1
    with pytest.raises(DataError, match="no sentence to begin a round from"):
        make_rounds(model, tokenizer(), real, flat, FAST, contexts=[])
    with pytest.raises(DataError, match="set warm_epochs to 0"):
        make_rounds(model, tokenizer(), Rows.of([], "x"), Rounds(), FAST, contexts=contexts)


def test_every_arm_sees_equal_steps_and_is_compared_with_plain_fine_tuning(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bundle = Bundle(small(), tokenizer(), {}, "small")
    settings = SelfDistilling(
        arms=("mix", "generator", "soft"), seeds=2, soft_samples=8, soft_tokens=8,
        rounds=Rounds(
            rounds=1, contexts=20, warm_epochs=2, least_yield=0,
            drawing=Drawing(max_new_tokens=20, temperature=0.8, samples=3),
            proximity=Proximity(mutual=-50, cosine=-1, edit_most=1, length_ratio=0, least_words=1),
        ),
    )  # fmt: skip
    training = FAST.model_copy(update={"epochs": 2})
    found = self_distill(
        bundle, Paraphrase(), rows(80), rows(30, seed=5), rows(40, seed=6), settings, training, FAST, folder=tmp_path
    )
    table, by_epoch = found.values["table"], found.values["by_epoch"]
    assert list(table) == ["plain", "mix", "generator", "soft"]
    assert {row["steps"] for row in table.values()} == {10} and {row["seeds"] for row in table.values()} == {2}
    assert "against_plain" not in table["plain"]
    for arm in ("mix", "generator", "soft"):
        assert "plain fine-tuning" in table[arm]["against_plain"]["verdict"]
        assert [e["epoch"] for e in by_epoch[arm][0]["epochs"]] == [0, 1, 2]
    assert table["mix"]["rows"][0] > table["plain"]["rows"][0] == 80
    starts = {arm: by_epoch[arm][0]["epochs"][0]["loss"] for arm in table}
    assert starts["plain"] == starts["mix"] == starts["soft"] != starts["generator"]
    assert len(list((tmp_path / "scores").iterdir())) == 8 and json.loads((tmp_path / "pairs.json").read_text())
    assert found.values["rounds"][0]["pairs"] == len(found.pairs) > 0
    none = Rows.of([r for r in rows(40) if r.fields["is_duplicate"] == 0], "none")
    with pytest.raises(DataError, match="no pair of none is a paraphrase"):
        self_distill(bundle, Paraphrase(), none, rows(9), rows(9), settings, training, FAST)


def test_own_samples_are_texts_of_the_model(tmp_path: Path) -> None:
    found = own_samples(small(), tokenizer(), 3, 6, seed=0)
    assert len(found) == 3 and all(2 <= len(e) <= 7 and e.ids[0] == tokenizer().bos_id for e in found)
    assert len({tuple(e.ids) for e in found}) == 3
