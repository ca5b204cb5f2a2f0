"""A deployment behind an OpenAI-compatible server, compared with the model that was measured.

A server shows neither weights nor ids, but it counts a prompt's tokens, tells log-probabilities of what follows, and
ends where its stop tokens say. What differs is named: the tokenizer, the begin token, the chat template, a stop token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from limbeck.data.chat import Message
from limbeck.data.probes import PROBES
from limbeck.data.token_bytes import TokenBytes
from limbeck.errors import ConfigError, RunError
from limbeck.measure.equivalence import CONVERSATIONS, Difference
from limbeck.measure.server import connected
from limbeck.measure.sides import BundleSide

__all__ = ["ServedModel", "ServerCheck", "compare_with_server"]

_PROBES = 12
_DRAWN = 256  # random prompts among which some may be followed by an end token
_TOP = 5


class ServedModel:
    """A model at a server.

    Args:
        url: such as ``http://127.0.0.1:8000/v1``.
        model: as the server calls it; None: the first that it lists.
        key: sent as a bearer; empty: none.
        timeout: seconds that an answer may take.

    Raises:
        ConfigError: the address is no http address, or the server lists no model.
        RunError: it cannot be reached, or refuses.
    """

    def __init__(self, url: str, model: str | None = None, key: str = "", timeout: float = 120.0) -> None:
        self._key = key
        self.url, self._client = connected(url, key, timeout)
        self.model = model or self._first()

    def complete(self, prompt: str | Sequence[int], **options: Any) -> dict[str, Any] | None:
        """Return the answer to a prompt; None where the server refuses such a request."""
        return self._ask("completions", {"prompt": prompt if isinstance(prompt, str) else list(prompt), **options})

    def converse(self, turns: Sequence[Message], **options: Any) -> dict[str, Any] | None:
        """Return the next answer of a conversation; None where the server refuses such a request."""
        return self._ask("chat/completions", {"messages": [m.plain() for m in turns], **options})

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _first(self) -> str:
        status, told = self._send("GET", "models", None)
        try:
            return str(told["data"][0]["id"])
        except (LookupError, TypeError):
            raise ConfigError(f"{self.url} lists no model (status {status}): name one") from None

    def _ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
        status, told = self._send("POST", path, {"model": self.model, "temperature": 0, **body})
        if status in (400, 404, 422):
            return None
        if status != 200 or not isinstance(told, dict) or not told.get("choices"):
            error = told.get("error") if isinstance(told, dict) else None
            said = error.get("message") if isinstance(error, dict) else error
            raise RunError(f"{self.url} refuses (status {status}): {self._clean(said or 'no reason given')}")
        return told

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[int, Any]:
        import httpx2

        try:
            answer = self._client.request(method, f"{self.url}/{path}", json=body)
        except httpx2.HTTPError as error:
            raise RunError(f"{self.url} cannot be reached: {self._clean(error)}") from None
        try:
            return answer.status_code, answer.json()
        except ValueError:
            raise RunError(f"{self.url} does not answer in JSON (status {answer.status_code})") from None

    def _clean(self, said: object) -> str:
        text = " ".join(str(said).split())[:200]
        return text.replace(self._key, "(key)") if self._key else text


@dataclass(frozen=True, slots=True)
class ServerCheck:
    """What a comparison with a server found.

    Attributes:
        source: name of the model that was measured.
        target: the server and its model.
        findings: what differs; empty where nothing was found.
        prompts: prompts and conversations whose tokens were counted.
        max_difference_nats: largest difference of a log-probability of the likeliest next tokens; None: none was told.
        greedy_texts: greedy continuations compared.
        greedy_agreed: those that are equal, or part at a tie.
        untested: what the server or the model gave no way to test.
    """

    source: str
    target: str
    findings: tuple[Difference, ...]
    prompts: int
    max_difference_nats: float | None
    greedy_texts: int
    greedy_agreed: int
    untested: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Nothing was found to differ."""
        return not self.findings


@dataclass(slots=True)
class _Comparison:
    source: BundleSide
    served: ServedModel
    new_tokens: int
    tolerance: float
    spell: TokenBytes
    findings: list[Difference] = field(default_factory=list)
    untested: list[str] = field(default_factory=list)
    differences: list[float] = field(default_factory=list)
    prompts: int = 0
    greedy: int = 0
    agreed: int = 0

    @property
    def target(self) -> str:
        return f"{self.served.model} at {self.served.url}"

    def next_log_probs(self, ids: Sequence[int]) -> torch.Tensor:
        """Return (V,) log-probabilities behind ``ids`` by the source."""
        return self.source.logits(torch.tensor([list(ids)]))[0, -1].log_softmax(-1)

    def fits(self, ids: Sequence[int]) -> bool:
        """Return whether the ids and a continuation fit the source's context."""
        return 0 < len(ids) and len(ids) + self.new_tokens <= self.source.model.config.context

    def apart(self, ids: Sequence[int], told: Mapping[str, float]) -> float | None:
        """Return the median difference between told log-probabilities, by the text of a token, and the source's.

        The median, as a server may spell a token that is no text by itself otherwise than we do.
        """
        if not told:
            return None
        values, best = self.next_log_probs(ids).topk(4 * _TOP)
        by_text: dict[str, float] = {}
        for value, token in zip(values.tolist(), best.tolist(), strict=True):
            by_text.setdefault(self.spell.text(token), value)
        found = [abs(by_text[text] - value) if text in by_text else float("inf") for text, value in told.items()]
        return sorted(found)[(len(found) - 1) // 2]


def compare_with_server(
    source: BundleSide, served: ServedModel, *, texts: Sequence[str] = (), new_tokens: int = 16, tolerance: float = 0.05
) -> ServerCheck:
    """Compare a server with the model that it should serve.

    Args:
        source: the model that was measured.
        served: the server.
        texts: further prompts; probes of all scripts are always among them.
        new_tokens: of each greedy continuation.
        tolerance: difference of a log-probability, in nats, that rounding explains.

    Raises:
        RunError: the server cannot be reached, or refuses everything.
    """
    c = _Comparison(source, served, new_tokens, tolerance, TokenBytes(source.tokenizer))
    shared = _compare_texts(c, texts)
    _compare_conversations(c, shared)
    _compare_stops(c)
    largest = max(c.differences, default=None)
    return ServerCheck(
        source.name, c.target, tuple(c.findings), c.prompts, largest, c.greedy, c.agreed, tuple(c.untested)
    )


def _compare_texts(c: _Comparison, texts: Sequence[str]) -> bool:
    """Compare prompts of plain text; returns whether log-probabilities agree."""
    t, wrong = c.source.tokenizer, list[tuple[str, int, int]]()
    counted, apart = 0, list[tuple[str, float]]()
    for text in (*texts, *PROBES[:_PROBES]):
        ids = t.with_begin(t.encode(text))
        if not c.fits(ids):
            continue
        told = c.served.complete(text, max_tokens=1, logprobs=_TOP)
        if told is None:
            told = c.served.complete(text, max_tokens=1)
        if told is None:
            c.untested.append("completions: the server refuses them")
            return True
        c.prompts += 1
        used = (told.get("usage") or {}).get("prompt_tokens")
        if isinstance(used, int):
            counted += 1
            if used != len(ids):
                wrong.append((text, len(ids), used))
                continue
        found = c.apart(ids, _told_of_completion(told))
        if found is not None:
            apart.append((text, found))
            c.differences.append(found)
        _compare_greedy(c, text, ids)
    if wrong:
        text, ours, theirs = wrong[0]
        shift = {theirs - ours for _, ours, theirs in wrong}
        if len(wrong) == counted and shift in ({1}, {-1}):
            message = f"every prompt has {'one token more' if shift == {1} else 'one token less'} in {c.target}"
            c.findings.append(Difference("begin", "begin token", f"{message}: the begin token is put otherwise"))
        else:
            shown = text if len(text) <= 40 else text[:37] + "..."
            message = f"{shown!r} has {ours} tokens in {c.source.name} and {theirs} in {c.target}"
            c.findings.append(Difference("tokenizer", "encode", message))
    if not apart and not wrong:
        c.untested.append("log-probabilities: the server tells none")
    worst = max(apart, key=lambda one: one[1], default=None)
    if worst is None or worst[1] <= c.tolerance:
        return True
    message = f"log-probabilities behind {worst[0][:40]!r} differ by {_nats(worst[1])}"
    c.findings.append(Difference("logits", "logits", message))
    return False


def _compare_greedy(c: _Comparison, text: str, ids: Sequence[int]) -> None:
    """Compare a greedy continuation; where it parts at a tie of the source, it agrees."""
    told = c.served.complete(text, max_tokens=c.new_tokens)
    if told is None:
        return
    said = str(told["choices"][0].get("text") or "")
    ended = told["choices"][0].get("finish_reason") == "stop"
    t, stops = c.source.tokenizer, c.source.stops()
    ours, prompt, grown = list(ids), t.decode(ids), ""
    c.greedy += 1
    for _ in range(c.new_tokens):
        values, best = c.next_log_probs(ours).topk(2)
        token, tie = int(best[0]), float(values[0] - values[1]) <= 2 * c.tolerance
        if token in stops:
            if len(said) > len(grown) and not tie:
                message = f"{c.target} does not stop at {token} ({t.piece(token)})"
                c.findings.append(Difference("stops", "stop tokens", message))
                return
            break
        ours.append(token)
        before, grown = grown, t.decode(ours)[len(prompt) :].rstrip("\ufffd")
        if said.startswith(grown):
            continue
        if tie:
            break  # they part where the source has no clear choice
        if ended and len(said) <= len(before):
            message = f"{c.target} ends behind {said[-20:]!r}, where {c.source.name} goes on"
            c.findings.append(Difference("stops", "stop tokens", message))
        else:
            message = f"greedy continuations of {text[:40]!r} part: {grown[-20:]!r} and {said[: len(grown)][-20:]!r}"
            c.findings.append(Difference("greedy", "greedy", message))
        return
    c.agreed += 1


def _compare_conversations(c: _Comparison, shared: bool) -> None:
    """Compare conversations by their tokens and what follows; ``shared``: plain text is followed alike."""
    for turns in CONVERSATIONS:
        ids = c.source.conversation(turns)
        told = c.served.converse(turns, max_tokens=1, logprobs=True, top_logprobs=_TOP)
        told = c.served.converse(turns, max_tokens=1) if told is None else told
        if not isinstance(ids, list) or told is None:
            if isinstance(ids, list) != (told is not None):
                which = c.target if told is None else c.source.name
                message = f"{which} has no layout for a conversation, the other has one"
                c.findings.append(Difference("template", "chat template", message))
                return
            continue
        if not c.fits(ids):
            continue
        c.prompts += 1
        used = (told.get("usage") or {}).get("prompt_tokens")
        if isinstance(used, int) and used != len(ids):
            message = f"a conversation has {len(ids)} tokens in {c.source.name} and {used} in {c.target}"
            c.findings.append(Difference("template", "chat template", message))
            return
        found = c.apart(ids, _told_of_chat(told))
        if found is not None and shared:
            c.differences.append(found)
            if found > c.tolerance:
                message = f"what follows a conversation differs by {_nats(found)}, though plain text agrees"
                c.findings.append(Difference("template", "chat template", message))
                return


def _compare_stops(c: _Comparison) -> None:
    """Ask what follows prompts behind which the source ends, for every end token."""
    for end in sorted(c.source.stops()):
        ids = _before_an_end(c, end)
        name = c.source.tokenizer.piece(end)
        if ids is None:
            c.untested.append(f"stop token {end} ({name}): no prompt was found that it follows")
            continue
        told = c.served.complete(ids, max_tokens=4)
        if told is None:
            c.untested.append(f"stop token {end} ({name}): the server takes no token ids")
            continue
        choice, used = told["choices"][0], (told.get("usage") or {}).get("completion_tokens")
        if choice.get("finish_reason") != "stop" or choice.get("text") or (isinstance(used, int) and used > 1):
            message = f"{c.target} does not stop at {end} ({name})"
            c.findings.append(Difference("stops", "stop tokens", message))


def _before_an_end(c: _Comparison, end: int) -> list[int] | None:
    """Return a prompt behind which the source clearly chooses ``end``."""
    vocabulary = c.source.tokenizer.vocab_size
    length = min(8, c.source.model.config.context - 4)
    drawn = torch.randint(vocabulary, (_DRAWN, length), generator=torch.Generator().manual_seed(0))
    best, margin = None, 2 * c.tolerance
    for rows in (*torch.split(drawn, 32), *_written(c)):
        values = c.source.logits(rows)[:, -1].log_softmax(-1)
        others = values.clone()
        others[:, end] = -torch.inf
        gaps = values[:, end] - others.max(-1).values
        at = int(gaps.argmax())
        if float(gaps[at]) > margin:
            best, margin = rows[at].tolist(), float(gaps[at])
    return best


def _written(c: _Comparison) -> Iterator[torch.Tensor]:
    """Prompts (1, T) of the model's own: what it writes to conversations and texts, up to each of its ends."""
    t = c.source.tokenizer
    starts = [ids for turns in CONVERSATIONS if isinstance(ids := c.source.conversation(turns), list)]
    starts += [t.with_begin(t.encode(text)) for text in PROBES[:4]]
    for ids in starts:
        grown = list(ids)
        for _ in range(48):
            if len(grown) + 4 >= c.source.model.config.context:
                break
            token = int(c.next_log_probs(grown).argmax())
            if token in c.source.stops():
                yield torch.tensor([grown])
                break
            grown.append(token)


def _nats(difference: float) -> str:
    return f"{difference:.3g} nats" if difference < float("inf") else "more than can be told: other tokens are likely"


def _told_of_completion(told: Mapping[str, Any]) -> dict[str, float]:
    """Return the likeliest first tokens by text, from either shape of ``logprobs``."""
    scores = told["choices"][0].get("logprobs")
    if not isinstance(scores, Mapping):
        return {}
    tops = scores.get("top_logprobs")
    if isinstance(tops, list) and tops and isinstance(tops[0], Mapping):
        return {str(text): float(value) for text, value in tops[0].items()}
    return _told_of_chat(told)


def _told_of_chat(told: Mapping[str, Any]) -> dict[str, float]:
    scores = told["choices"][0].get("logprobs")
    content = scores.get("content") if isinstance(scores, Mapping) else None
    if not isinstance(content, list) or not content:
        return {}
    return {str(one["token"]): float(one["logprob"]) for one in content[0].get("top_logprobs") or ()}
