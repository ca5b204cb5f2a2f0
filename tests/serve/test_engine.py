"""The engine: many sequences on one pool, each decoded as it is alone."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.data.token_bytes import TokenBytes
from limbeck.decode.generate import Generation, generate
from limbeck.decode.settings import Decoding
from limbeck.errors import ConfigError, LimbeckError
from limbeck.model.decoder import Decoder
from limbeck.serve.engine import Engine, QueueFullError, StoppingError
from limbeck.serve.sequence import Ended, Event, ServedSequence, TextPiece
from tests.reference.small_model import MODERN, decoder
from tests.reference.small_tokenizer import byte_level

TOKENIZER = byte_level()
PROMPTS = [TOKENIZER.encode(t) for t in ("Once upon a time", "A hen", "The old man and the sea", "x", "Why? Because")]


class Heard:
    """What a sequence said."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ended = threading.Event()

    def __call__(self, event: Event) -> None:
        assert not self.ended.is_set()  # nothing follows the end
        self.events.append(event)
        if isinstance(event, Ended):
            self.ended.set()

    @property
    def text(self) -> str:
        return "".join(e.text for e in self.events if isinstance(e, TextPiece))

    @property
    def end(self) -> Ended:
        assert isinstance(self.events[-1], Ended)
        return self.events[-1]


def asked(number: int, decoding: Decoding, **more: Any) -> tuple[ServedSequence, Heard]:
    heard = Heard()
    more.setdefault("new_tokens", decoding.max_new_tokens)
    return ServedSequence(PROMPTS[number], decoding, TOKENIZER, heard, **more), heard


def lone(model: Decoder, number: int, decoding: Decoding) -> Generation:
    ((found,),) = generate(model, TOKENIZER, [PROMPTS[number]], decoding)
    return found


def settings(number: int) -> Decoding:
    """Greedy and sampled ones, of many lengths."""
    if number % 3 == 0:
        return Decoding(max_new_tokens=3 + number)
    return Decoding(
        max_new_tokens=20 - number, temperature=0.7 + 0.1 * (number % 2), top_k=40 * (number % 2), seed=number,
        repetition_penalty=1.2 if number == 5 else 1.0, top_p=0.9 if number == 7 else 1.0,
    )  # fmt: skip


@pytest.mark.parametrize("shape", [{}, MODERN], ids=["gpt2", "modern"])
def test_ten_requests_that_join_and_leave_say_what_each_says_alone(shape: dict[str, Any]) -> None:
    model = decoder(context=64, **shape)
    engine = Engine(model, TOKENIZER, rows=8)
    told: list[tuple[int, Heard, ServedSequence]] = []
    most = 0
    for number in range(10):
        sequence, heard = asked(number % 5, settings(number))
        engine.submit([sequence])
        told.append((number, heard, sequence))
        engine.step()
        most = max(most, engine.pool.used)
    while engine.step():
        most = max(most, engine.pool.used)
    assert most >= 6 and engine.idle and engine.pool.used == 0
    for number, heard, sequence in told:
        wanted = lone(model, number % 5, settings(number))
        assert sequence.row.ids == list(wanted.ids)
        assert heard.text == wanted.text and heard.end.tokens == wanted.tokens
        assert heard.end.reason == ("length" if wanted.stopped == "length" else "stop")


def test_stop_texts_across_tokens_are_never_told() -> None:
    model = decoder(context=64)
    plain = lone(model, 0, Decoding(max_new_tokens=30)).text
    stop = plain[10:14]
    decoding = Decoding(max_new_tokens=30, stop=(stop,))
    engine = Engine(model, TOKENIZER, rows=2)
    sequence, heard = asked(0, decoding, top=1, spell=TokenBytes(TOKENIZER))
    engine.submit([sequence])
    while engine.step():
        assert stop not in heard.text
    assert heard.text == plain[: plain.index(stop)] and heard.end.reason == "stop"
    pieces = [e for e in heard.events if isinstance(e, TextPiece)]
    assert all(one.offset < len(heard.text) for p in pieces for one in p.tokens)


def test_log_probabilities_are_those_of_the_model() -> None:
    model = decoder(context=64)
    decoding = Decoding(max_new_tokens=6, temperature=1.5, seed=3)
    engine = Engine(model, TOKENIZER, rows=2)
    sequence, heard = asked(2, decoding, top=3, echo="told", spell=TokenBytes(TOKENIZER))
    other, _ = asked(1, settings(1))
    engine.submit([other, sequence])
    while engine.step():
        pass
    tokens = [one for e in heard.events if isinstance(e, TextPiece) for one in e.tokens]
    ids = [one.id for one in tokens]
    assert ids == [*PROMPTS[2], *sequence.row.ids] and tokens[0].log_prob is None
    assert heard.text.startswith("told")
    from limbeck.data.batch import Batch

    with torch.no_grad():
        wanted = model(Batch.of_ids(torch.tensor([ids])))[0].log_softmax(-1)
    for at, one in enumerate(tokens[1:]):
        assert one.log_prob == pytest.approx(float(wanted[at, one.id]), abs=2e-5)
        values, best = wanted[at].topk(3)
        assert [i for i, _ in one.top] == best.tolist()
        assert [v for _, v in one.top] == pytest.approx(values.tolist(), abs=2e-5)
    assert sum(one.log_prob or 0 for one in tokens[len(PROMPTS[2]) :]) == pytest.approx(sequence.row.log_prob, abs=1e-5)


def test_nothing_is_generated_where_only_the_prompt_is_wanted() -> None:
    engine = Engine(decoder(), TOKENIZER, rows=1)
    sequence, heard = asked(
        1, Decoding(max_new_tokens=1), new_tokens=0, echo="A hen", top=0, spell=TokenBytes(TOKENIZER)
    )
    engine.submit([sequence])
    assert not engine.step()
    assert heard.text == "A hen" and heard.end == Ended("length", 0)
    (piece,) = [e for e in heard.events if isinstance(e, TextPiece)]
    assert [one.id for one in piece.tokens] == PROMPTS[1] and all(one.top == () for one in piece.tokens)


def test_a_full_queue_is_refused_and_takes_none_of_them() -> None:
    engine = Engine(decoder(), TOKENIZER, rows=1, queue=2)
    some = [asked(1, Decoding(max_new_tokens=2)) for _ in range(5)]
    engine.submit([s for s, _ in some[:2]])
    with pytest.raises(
        QueueFullError, match="all 1 rows of the cache pool are taken and 2 of at most 2 sequences wait"
    ):
        engine.submit([s for s, _ in some[2:4]])
    engine.submit([some[4][0]])
    while engine.step():
        pass
    assert [heard.ended.is_set() for _, heard in some] == [True, True, False, False, True]


def test_a_cancelled_sequence_frees_its_row_at_the_next_step() -> None:
    engine = Engine(decoder(context=64), TOKENIZER, rows=1, queue=4)
    long, waiting, short = (asked(1, Decoding(max_new_tokens=n)) for n in (50, 50, 2))
    engine.submit([long[0], waiting[0], short[0]])
    engine.step()
    assert engine.pool.used == 1
    engine.cancel([long[0], waiting[0]])
    engine.step()
    assert short[1].events and engine.load == (1, 0) or short[1].ended.is_set()
    while engine.step():
        pass
    assert short[1].ended.is_set() and not long[1].ended.is_set() and engine.idle and engine.pool.used == 0


def test_a_thread_works_until_it_is_closed() -> None:
    model = decoder(context=64)
    engine = Engine(model, TOKENIZER, rows=4)
    engine.start()
    some = [asked(i % 5, settings(i)) for i in range(9)]
    for sequence, _ in some:
        engine.submit([sequence])
    for _, heard in some:
        assert heard.ended.wait(60)
    for number, (sequence, _) in enumerate(some):
        assert sequence.row.ids == list(lone(model, number % 5, settings(number)).ids)
    engine.close()
    with pytest.raises(StoppingError):
        engine.submit([asked(0, Decoding())[0]])


def test_closing_ends_what_is_under_way_with_an_error() -> None:
    engine = Engine(decoder(context=512), TOKENIZER, rows=1)
    first, second = (asked(1, Decoding(max_new_tokens=500)) for _ in range(2))
    engine.submit([first[0], second[0]])
    engine.start()
    engine.close()
    for _, heard in (first, second):
        assert heard.end.reason == "error" and isinstance(heard.end.error, StoppingError)
    assert engine.idle


def test_what_goes_wrong_with_one_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder(context=64)
    engine = Engine(model, TOKENIZER, rows=3)
    good, bad, late = (asked(n, Decoding(max_new_tokens=5)) for n in (0, 1, 2))
    true = engine.pool.join

    def join(prompt: Any) -> Any:
        logits = true(prompt)
        if list(prompt) == PROMPTS[1]:
            raise MemoryError("no room")
        return logits

    monkeypatch.setattr(engine.pool, "join", join)
    engine.submit([s for s, _ in (good, bad, late)])
    while engine.step():
        pass
    error = bad[1].end.error
    assert isinstance(error, LimbeckError) and "MemoryError: no room" in str(error)
    for (sequence, _), number in ((good, 0), (late, 2)):
        assert sequence.row.ids == list(lone(model, number, Decoding(max_new_tokens=5)).ids)
    assert engine.pool.used == 0


def test_a_step_that_fails_ends_those_in_it_and_the_engine_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(decoder(context=64), TOKENIZER, rows=3)
    first, second, later = (asked(n, Decoding(max_new_tokens=5)) for n in (0, 1, 2))
    engine.submit([first[0], second[0]])
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(engine.pool, "step", lambda tokens: 1 / 0)
        engine.step()
    assert "ZeroDivisionError" in str(first[1].end.error) and "ZeroDivisionError" in str(second[1].end.error)
    engine.submit([later[0]])
    while engine.step():
        pass
    assert later[1].end.reason == "length" and engine.idle


def test_damaged_weights_are_an_error_of_each_request() -> None:
    model = decoder()
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    engine = Engine(model, TOKENIZER, rows=2)
    sequence, heard = asked(0, Decoding(max_new_tokens=5))
    engine.submit([sequence])
    assert not engine.step()
    assert "not finite" in str(heard.end.error) and engine.pool.used == 0


def test_a_draft_speeds_one_greedy_request_that_is_alone_and_changes_nothing() -> None:
    model, draft = decoder(context=64), decoder(context=64, layers=1)
    engine = Engine(model, TOKENIZER, rows=4, draft=draft)
    decoding = Decoding(max_new_tokens=12)
    first, second = asked(0, decoding), asked(2, decoding)
    engine.submit([first[0]])
    engine.step()
    assert engine.pool.used == 0 and engine.worth.rounds == 1
    engine.submit([second[0]])  # batched: the first is not alone any more, and goes on as it began
    while engine.step():
        pass
    for (sequence, heard), number in ((first, 0), (second, 2)):
        wanted = lone(model, number, decoding)
        assert sequence.row.ids == list(wanted.ids) and heard.text == wanted.text
    assert engine.worth.tokens == first[1].end.tokens
    rounds = engine.worth.rounds
    sampled = asked(1, Decoding(max_new_tokens=4, temperature=1.0, seed=5))
    engine.submit([sampled[0]])
    while engine.step():
        pass
    assert engine.worth.rounds == rounds  # a draft would draw other samples
    assert sampled[0].row.ids == list(lone(model, 1, sampled[0].decoding).ids)


def test_a_cancelled_speculative_request_frees_its_place() -> None:
    model = decoder(context=64)
    engine = Engine(model, TOKENIZER, rows=1, draft=decoder(context=64, layers=1))
    sequence, heard = asked(0, Decoding(max_new_tokens=40))
    engine.submit([sequence])
    engine.step()
    engine.cancel([sequence])
    assert not engine.step() and not heard.ended.is_set()


def test_a_draft_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigError, match="the draft has 289 tokens"):
        Engine(decoder(), TOKENIZER, draft=decoder(vocab_size=289))


def test_the_bytes_of_tokens_are_the_text(tmp_path: Path) -> None:
    spell = TokenBytes(TOKENIZER)
    text = "Größe 🦔 and \n tabs"
    assert b"".join(map(spell, TOKENIZER.encode(text))).decode() == text
    assert spell.text(TOKENIZER.eos_id) == "<|endoftext|>" and spell(TOKENIZER.vocab_size + 5) == b""
    part = TOKENIZER.encode("é")[0]
    assert spell.text(part) in ("é", "bytes:\\xc3")
