"""Probes of writing: each fires on its failure, and not on what merely looks like it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.data.batch import Example
from limbeck.decode.generate import Generation
from limbeck.decode.settings import Decoding
from limbeck.measure.alarm import Alarm, Continuation, Subject
from limbeck.measure.probes.writing import Collapsed, Echo, Ending, Length, Looping, Repetition, cut_example, write
from limbeck.model.config import Classes
from tests.reference.small_model import decoder
from tests.reference.small_tokenizer import byte_level


def ask(probe: object, *written: Continuation) -> Alarm:
    told = probe(Subject(written=written))  # type: ignore[operator]
    assert isinstance(told, Alarm) and told.sentence
    return told


def ids(start: int, count: int) -> tuple[int, ...]:
    return tuple(range(start, start + count))


def test_ending_counts_only_where_the_reference_ends_too() -> None:
    stops, runs_on = Continuation((1,), (2,), (3,), True, True), Continuation((1,), (2,) * 9, (3,), False, True)
    cut = Continuation((1,), (2,) * 9, (3,) * 9, False, False)  # a chunk of a longer text: it need not end
    assert (ask(Ending(), *[stops] * 3, runs_on, *[cut] * 9).value, ask(Ending(), *[stops] * 4).fired) == (0.75, False)
    never = ask(Ending(), *[runs_on] * 4)
    assert never.fired and never.value == 0 and "0% of 4 generations end" in never.sentence
    assert Ending()(Subject(written=[runs_on] * 3 + [cut] * 9)) is None


def test_length_is_held_against_the_references_both_ways() -> None:
    def of(ours: int, truth: int) -> list[Continuation]:
        return [Continuation((1,), (2,) * ours, (3,) * truth, True, True)] * 4

    assert [ask(Length(), *of(n, 10)).fired for n in (4, 5, 19, 20)] == [True, False, False, True]
    assert ask(Length(), *of(0, 10)).value == 0
    assert Length()(Subject(written=of(9, 3))) is None  # so short that one token more decides
    assert Length()(Subject(written=of(9, 10)[:3])) is None


def test_loops_ring_unless_the_reference_loops_too() -> None:
    loop = Continuation((1,), (*ids(10, 5), *(1, 2) * 12), ids(50, 30))
    fine = Continuation((1,), ids(10, 30), ids(50, 30))
    refrain = Continuation((1,), (7,) * 24, (7,) * 24)
    assert ask(Looping(), loop, *[fine] * 3).fired and not ask(Looping(), *[refrain] * 4).fired
    laugh = Continuation((1,), (*ids(10, 20), 3, 3, 3, 3), ids(50, 30))  # "ha ha ha ha" ends a text now and then
    assert not ask(Looping(), *[laugh] * 4).fired
    assert Looping()(Subject(written=[loop] * 3)) is None


def test_repetition_is_above_that_of_the_references() -> None:
    again = (*ids(0, 12), *ids(0, 12), *ids(0, 12))
    assert ask(Repetition(), Continuation((1,), again, ids(50, 30))).fired
    assert not ask(Repetition(), Continuation((1,), again, again)).fired
    assert not ask(Repetition(), Continuation((1,), ids(0, 36), ids(50, 30))).fired
    assert Repetition()(Subject(written=[Continuation((1,), ids(0, 9))])) is None


def test_an_echo_is_a_run_of_the_prompt_and_not_a_shared_word() -> None:
    prompt = ids(100, 20)
    back = Continuation(prompt, (1, 2, *prompt[3:17], 5), ids(0, 10))
    word = Continuation(prompt, (*prompt[3:6], *ids(0, 10), *prompt[8:11]), ids(0, 10))
    quoting = Continuation(prompt, prompt[:15], prompt[:15])  # the true answer quotes the prompt
    assert ask(Echo(), *[back] * 4).value == 1
    assert ask(Echo(), *[word] * 4).value == 0 and ask(Echo(), *[quoting] * 4).value == 0
    assert ask(Echo(), back, *[word] * 3).fired
    short = Continuation(prompt[:7], (9, *prompt[:7]), ids(0, 10))
    assert ask(Echo(), *[short] * 4).fired  # the whole of a short prompt
    assert Echo()(Subject(written=[Continuation((1, 2), (1, 2), (3,))] * 9)) is None  # too short to tell


def test_one_text_for_every_prompt_is_a_collapse() -> None:
    same = [Continuation((i,), (1,), (i,), text="yes", truth=f"answer {i}") for i in range(8)]
    other = [Continuation((i,), (1,), (i,), text=f"it is {i}", truth=f"answer {i}") for i in range(8)]
    agreed = [Continuation((i,), (1,), (1,), text="yes", truth="yes") for i in range(8)]
    told = ask(Collapsed(), *same)
    assert told.fired and told.value == 1 and "8 of 8 generations are 'yes'" in told.sentence
    assert not ask(Collapsed(), *other).fired and not ask(Collapsed(), *agreed).fired
    assert Collapsed()(Subject(written=same[:7])) is None


def example(tokens: list[int], target: list[bool]) -> Example:
    return Example(0, "0", np.array(tokens, np.int32), np.array(target))


def test_an_example_is_cut_before_what_is_learned() -> None:
    assert cut_example(example([5, 6, 7, 8], [False, False, True, True])) == ([5, 6], [7, 8])
    assert cut_example(example(list(range(40)), [True] * 40)) == (list(range(10)), list(range(10, 40)))
    assert len(cut_example(example(list(range(400)), [False] + [True] * 399))[0]) == 16
    assert cut_example(example([5], [True])) == ([5], [])
    assert cut_example(example([5, 6], [False, False])) == ([5, 6], [])


def test_write_says_what_was_given_written_and_true() -> None:
    torch.manual_seed(0)
    tokenizer = byte_level()
    model, end = decoder(vocab_size=tokenizer.vocab_size), tokenizer.eos_id
    prompt, answer = tokenizer.encode("the cat"), [*tokenizer.encode(" sat"), end]
    flags = [False] * len(prompt) + [True] * len(answer)
    whole, cut = example(prompt + answer, flags), example(prompt + answer[:-1], flags[:-1])
    nothing = example([5], [True])
    decoding = Decoding(max_new_tokens=100)
    some = write(model, tokenizer, [whole, cut, nothing], decoding)
    assert [w.may_end for w in some] == [True, False]
    assert all(w.prompt == tuple(prompt) and w.truth == " sat" and w.reference == tuple(answer[:-1]) for w in some)
    assert all(end not in w.ids and w.text == tokenizer.decode(w.ids) for w in some)
    assert max(len(w.ids) for w in some) <= 2 * len(answer) + 8
    tight = write(model, tokenizer, [whole], Decoding(max_new_tokens=1))
    assert len(tight[0].ids) <= 1 and not tight[0].may_end


def test_an_end_token_at_once_is_an_ended_empty_text(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_level()
    told = [[Generation((tokenizer.eos_id,), "", "end", -1.0, -1.0)]]
    monkeypatch.setattr("limbeck.measure.probes.writing.generate", lambda *args, **more: told)
    (one,) = write(decoder(), tokenizer, [example([5, 6, tokenizer.eos_id], [False, True, True])], Decoding())
    assert (one.ids, one.ended, one.may_end, one.reference) == ((), True, True, (6,))


def test_a_model_of_classes_writes_nothing() -> None:
    model = decoder()
    model.config = model.config.model_copy(update={"classes": Classes(labels=("a", "b"), pool="last"), "tied": False})
    assert write(model, byte_level(), [example([5, 6], [False, True])], Decoding()) == []
    with pytest.raises(AttributeError):
        Continuation((1,), (2,)).text = "x"  # type: ignore[misc]
