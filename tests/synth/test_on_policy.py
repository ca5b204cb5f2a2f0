"""On-policy and sequence-level distillation: losses as trl computes them, streams that a resume finds again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.data.batch import IGNORE, Batch, Example
from limbeck.data.batches import Batches
from limbeck.decode.generate import generate
from limbeck.decode.settings import Decoding
from limbeck.errors import ConfigError, DataError
from limbeck.losses.divergence import named
from limbeck.losses.terms import total
from limbeck.model.decoder import Decoder
from limbeck.objectives.distill import Distillation
from limbeck.objectives.teacher import LiveTeacher
from limbeck.run import Run
from limbeck.synth.on_policy import LossHistory, Mixing, OnPolicy, Replay, check_mixing, keep_rows, prompt_of
from limbeck.synth.teacher_answers import teacher_answers
from limbeck.train.loop import train
from limbeck.train.settings import TrainSettings
from tests.reference.task_models import small, tokenizer

SETTINGS = TrainSettings(steps=6, learning_rate=1e-2, precision="fp32", monitor="", checkpoint_every=2, log_every=1)


def gkd_loss(student: Tensor, teacher: Tensor, labels: Tensor, beta: float, temperature: float) -> Tensor:
    """The generalised JSD of trl's GKDTrainer (0.24), written from its formula; labels are shifted by the caller."""
    student, teacher = (F.log_softmax(x / temperature, dim=-1) for x in (student, teacher))
    if beta == 0:
        value = F.kl_div(student, teacher, reduction="none", log_target=True)
    elif beta == 1:
        value = F.kl_div(teacher, student, reduction="none", log_target=True)
    else:
        mixture = torch.logsumexp(torch.stack([student + np.log(1 - beta), teacher + np.log(beta)]), dim=0)
        of_teacher = F.kl_div(mixture, teacher, reduction="none", log_target=True)
        of_student = F.kl_div(mixture, student, reduction="none", log_target=True)
        value = beta * of_teacher + (1 - beta) * of_student
    mask = labels != IGNORE
    return value[mask].sum() / mask.sum()


def examples(count: int = 10) -> list[Example]:
    tok = tokenizer()
    out = []
    for i in range(count):
        prompt = [tok.eos_id, *tok.encode(f"Is this answer {i} a paraphrase?")]
        answer = [*tok.encode(" yes no" if i % 2 else " positive"), tok.eos_id]
        ids = np.array(prompt + answer, dtype=np.int32)
        out.append(Example(i, f"r{i}", ids, np.arange(len(ids)) >= len(prompt)))
    return out


def given(size: int = 4, count: int = 10) -> Batches:
    return Batches(examples(count), batch_size=size, context=128, pad_id=tokenizer().pad_id, collate_fn=keep_rows)


def stream(student: Decoder, mixing: Mixing, **more: Any) -> OnPolicy:
    return OnPolicy(given(), student, tokenizer(), mixing, **more)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    ("name", "skew", "beta"),
    [("forward_kl", None, 0.0), ("reverse_kl", None, 1.0), ("jsd", 0.5, 0.5), ("jsd", 0.1, 0.1), ("jsd", 0.9, 0.9)],
)
def test_loss_and_gradients_are_those_of_gkd(name: str, skew: float | None, beta: float, temperature: float) -> None:
    student, teacher = small().double(), small(layers=3).double()
    batch = stream(student, Mixing(share=1.0, max_new_tokens=8)).at(0)
    objective = Distillation(
        LiveTeacher(teacher), alpha=0.0, beta=1.0, temperature=temperature, divergence=named(name, skew), on="answers"
    )
    loss = total(objective(student, batch), objective.counts(batch))
    loss.backward()  # type: ignore[no-untyped-call]
    ours = {k: p.grad.clone() for k, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    with torch.no_grad():
        theirs = teacher(batch)
    reference = gkd_loss(student(batch), theirs, batch.next_token_labels(), beta, temperature)
    reference.backward()
    # GKD leaves out the squared temperature of Hinton et al.
    assert loss.item() == pytest.approx(temperature**2 * reference.item(), rel=1e-9)
    for k, p in student.named_parameters():
        assert p.grad is not None and torch.allclose(ours[k], temperature**2 * p.grad, rtol=1e-6, atol=1e-10), k


def test_skewed_divergence_on_student_text_has_the_gradient_of_its_definition() -> None:
    student, teacher = small().double(), small(layers=3).double()
    batch = stream(student, Mixing(share=1.0, max_new_tokens=8)).at(0)
    objective = Distillation(LiveTeacher(teacher), alpha=0.0, beta=1.0, divergence=named("skew_kl", 0.1), on="answers")
    loss = total(objective(student, batch), objective.counts(batch))
    mask = batch.next_token_labels() != IGNORE
    q, p = (m(batch)[mask].log_softmax(dim=-1) for m in (student, teacher))
    reference = (p.exp() * (p - (0.1 * p.exp() + 0.9 * q.exp()).log())).sum() / mask.sum()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-9)


def test_the_student_answers_the_prompts_of_the_data() -> None:
    student = small()
    rows, made = given().at(0), stream(student, Mixing(share=1.0, max_new_tokens=5)).at(0)
    answers = generate(
        student, tokenizer(), [prompt_of(e) for e in rows],
        Decoding(max_new_tokens=5, temperature=1.0, seed=0), batch_size=4,
    )  # fmt: skip
    for i, example in enumerate(rows):
        prompt = prompt_of(example)
        assert prompt == example.ids[: len(example.ids) - example.predictions].tolist()
        assert made.ids[i, : len(prompt)].tolist() == prompt
        learned = made.ids[i][made.target_mask[i]].tolist()
        assert 1 <= len(learned) <= 5 and int(made.row_ids[i, 0]) == example.row
        assert int(made.real[i].sum()) == len(prompt) + len(learned)
    assert len(answers) == 4
    assert torch.equal(stream(student, Mixing(share=1.0, max_new_tokens=5)).at(0).ids, made.ids)
    other = stream(small(hidden_size=32), Mixing(share=1.0, max_new_tokens=5)).at(0)
    assert other.ids.shape != made.ids.shape or not torch.equal(other.ids, made.ids)  # another student, another text


def test_the_share_is_kept_and_zero_is_the_data() -> None:
    student = small()
    none, half = stream(student, Mixing()), stream(student, Mixing(share=0.5, max_new_tokens=2))
    plain = Batches(examples(), batch_size=4, context=128, pad_id=tokenizer().pad_id)
    own = 0
    for i in range(40):
        assert torch.equal(none.at(i).ids, plain.at(i).ids) and torch.equal(
            none.at(i).target_mask, plain.at(i).target_mask
        )
        batch = half.at(i)
        own += batch.ids.shape != plain.at(i).ids.shape or not torch.equal(batch.ids, plain.at(i).ids)
    assert 11 <= own <= 29 and half.written_tokens > 0  # 20 +- 3 standard errors
    assert half.per_epoch == plain.per_epoch and half.describe()["examples"] == 10


def test_an_adaptive_share_rises_when_the_validation_loss_does(tmp_path: Path) -> None:
    mixing = Mixing(schedule="adaptive", share=0.1, rise=0.3)
    assert [mixing.at(x) for x in ([], [2.0], [2.0, 1.9], [2.0, 2.1], [2, 2.1, 2.0, 2.2])] == pytest.approx(
        [0.1, 0.1, 0.1, 0.4, 0.7]
    )
    assert mixing.at([1, 2, 3, 4, 5, 6]) == 1.0 and Mixing(share=0.2).at([1, 2, 3]) == 0.2
    file = tmp_path / "metrics.jsonl"
    assert LossHistory(file).read() == [] and LossHistory(None).read() == []
    file.write_text('{"step": 0, "valid/nll": 2.0}\n{"step": 1, "train/loss": 3}\n{"step": 2, "valid/nll": null}\n'
                    '{"step": 4, "valid/nll": 2.5}\n')  # fmt: skip
    assert LossHistory(file).read() == [2.0, 2.5]
    adaptive = stream(small(), Mixing(schedule="adaptive", rise=1.0, max_new_tokens=2), history=LossHistory(file))
    adaptive.at(0)
    assert adaptive.written_tokens > 0
    assert stream(small(), Mixing(schedule="adaptive", rise=1.0)).mixing.on


def test_replay_takes_earlier_answers_of_the_newest_only() -> None:
    replay = Replay(None, capacity=4)
    random = np.random.default_rng(0)
    assert replay.draw(5, 2, random) == []
    for index in range(3):
        replay.add(index, [(index, [1], [10 * index + k]) for k in range(2)])
    drawn = [tuple(a[2]) for _ in range(30) for a in replay.draw(3, 2, random)]
    assert set(drawn) == {(10,), (11,), (20,), (21,)}
    assert {a[2][0] for a in replay.draw(2, 4, random)} == {0, 1, 10, 11}  # nothing of micro-batch 2 or later
    replay.add(1, [(9, [1], [99])])  # written again: what came after is forgotten
    assert {a[2][0] for a in replay.draw(9, 3, random)} == {0, 1, 99}


def test_replay_of_a_killed_run_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "replay.jsonl"
    first = Replay(file, 10)
    first.add(0, [(0, [1, 2], [3])])
    first.add(1, [(1, [1], [4])])
    with file.open("a") as out:
        out.write("[2, [[2, [1], [")
    again = Replay(file, 10)
    assert again.draw(9, 2, np.random.default_rng(0)) and file.read_text().count("\n") == 2
    again.add(1, [(1, [1], [4])])  # the same again changes nothing
    again.add(1, [(1, [1], [5])])
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        [0, [[0, [1, 2], [3]]]],
        [1, [[1, [1], [5]]]],
    ]


def run_training(folder: Path, stop_after: int | None, seed: int = 0) -> tuple[dict[str, Tensor], str]:
    """Train on-policy with replay; ``stop_after`` steps it fails, as a killed process does."""
    torch.manual_seed(1)
    student, teacher = small(), small(layers=3)
    mixing = Mixing(share=0.8, replay=0.5, capacity=8, max_new_tokens=4)

    def fail(step: int, losses: Any) -> None:
        if step == stop_after:
            raise RuntimeError("killed")

    with Run.create(folder, mixing) as run:
        own = stream(student, mixing, replay=Replay(run.path / "replay.jsonl", 8), seed=seed)
        objective = Distillation(LiveTeacher(teacher), alpha=0.0, beta=1.0, divergence="reverse_kl", on="answers")
        train(student, objective, own, SETTINGS, run=run, seed=seed, progress=False, on_step=fail)
    return student.state_dict(), (folder / "replay.jsonl").read_text()


def test_a_killed_run_goes_on_bit_equal(tmp_path: Path) -> None:
    whole, answers = run_training(tmp_path / "whole", None)
    with pytest.raises(RuntimeError, match="killed"):
        run_training(tmp_path / "cut", 5)
    again, resumed = run_training(tmp_path / "cut", None)
    assert all(torch.equal(whole[k], again[k]) for k in whole) and answers == resumed
    drawn = [json.loads(line)[0] for line in answers.splitlines()]
    assert 0 < len(drawn) < 6  # some micro-batches were given, or taken again


def test_training_on_its_own_text_brings_the_student_nearer_to_the_teacher() -> None:
    student, teacher = small(), small(hidden_size=32)
    objective = Distillation(LiveTeacher(teacher), alpha=0.0, beta=1.0, divergence="reverse_kl", on="answers")
    fixed = stream(small(), Mixing(share=1.0, max_new_tokens=8), seed=5).at(0)

    def distance() -> float:
        with torch.no_grad():
            return float(total(objective(student, fixed), objective.counts(fixed)))

    before = distance()
    settings = SETTINGS.model_copy(update={"steps": 25, "checkpoint_every": 0})
    train(student, objective, stream(student, Mixing(share=1.0, max_new_tokens=8)), settings, progress=False)
    assert distance() < 0.7 * before


def test_a_stream_of_the_student_is_never_made_ahead() -> None:
    from limbeck.train.prefetch import Prefetcher

    feed = Prefetcher(stream(small(), Mixing(share=1.0)), torch.device("cpu"))
    assert feed._thread is None and OnPolicy.live
    gpu = torch.device("cuda")
    if torch.cuda.is_available():
        assert Prefetcher(stream(small(), Mixing(share=1.0)), gpu)._thread is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rise": 0.2}, "belongs to the adaptive schedule"),
        ({"replay": 0.5}, "set a share above 0"),
        ({"share": 2}, "share"),
    ],
)
def test_options_that_do_not_agree_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Mixing(**options)


def test_packing_and_sharding_are_refused() -> None:
    for options in ({"packing": True, "shard": False}, {"packing": False, "shard": True}):
        with pytest.raises(ConfigError, match="on-policy distillation"):
            check_mixing(Mixing(share=0.5), **options)
        check_mixing(Mixing(), **options)


def test_teacher_answers_replace_those_of_the_data_and_survive_a_kill(tmp_path: Path) -> None:
    teacher, tok, some = small(), tokenizer(), examples(70)
    decoding, file = Decoding(max_new_tokens=4), tmp_path / "answers.jsonl"
    plain = teacher_answers(teacher, tok, some, decoding)
    out = generate(teacher, tok, [prompt_of(e) for e in some], decoding)
    assert [e.ids[len(prompt_of(e)) :].tolist() for e in plain] == [list(one[0].ids) for one in out]
    assert [e.row for e in plain] == list(range(70)) and all(e.target[-1] and not e.target[0] for e in plain)

    class Killed(Exception):
        pass

    def kill(line: str) -> None:
        raise Killed

    with pytest.raises(Killed):
        teacher_answers(teacher, tok, some, decoding, file=file, say=kill)
    assert len(file.read_text().splitlines()) == 65  # a key and one block
    again = teacher_answers(teacher, tok, some, decoding, file=file)
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(plain, again, strict=True))
    with pytest.raises(DataError, match="of another teacher"):
        teacher_answers(teacher, tok, some, decoding, file=file, key="another")


def test_a_batch_is_what_the_loop_counts() -> None:
    batch = stream(small(), Mixing(share=1.0, max_new_tokens=3)).at(1)
    assert isinstance(batch, Batch) and batch.plain and int((batch.next_token_labels() != IGNORE).sum()) > 0
