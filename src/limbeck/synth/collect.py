"""Asking a teacher: concurrent, rate-limited, retried, within a budget, and resumable after a kill."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from limbeck.config import Config
from limbeck.errors import Interrupted, RunError
from limbeck.synth.ledger import Ledger, Totals
from limbeck.synth.prompts import Plan
from limbeck.synth.teacher import Answer, Failed, Prices, Request, TextTeacher

__all__ = ["Asking", "Collected", "Estimate", "collect", "estimate"]


class Asking(Config):
    """How requests are sent."""

    concurrency: int = Field(8, ge=1, le=256, description="requests on their way at once")
    per_minute: float = Field(0.0, ge=0, description="requests begun a minute at most; 0: no limit")
    tokens_per_minute: float = Field(
        0.0, ge=0, description="tokens of prompts and answers a minute at most; 0: no limit"
    )
    attempts: int = Field(6, ge=1, description="attempts of a request before it is left for the next session")
    backoff: float = Field(1.0, gt=0, description="seconds before the second attempt; doubled each time, with jitter")
    longest_wait: float = Field(60.0, gt=0, description="seconds between two attempts at most")
    budget: float = Field(0.0, ge=0, description="most to spend, in the currency of the prices; 0: no limit")
    unsure: Literal["leave", "retry", "resend"] = Field(
        "retry",
        description="a request that may have been billed though no answer came (time-out, cut connection): leave it, "
        "retry it within the session, or, where the endpoint bills an idempotency key once, resend it after a kill too",
    )

    @property
    def honours_keys(self) -> bool:
        """Whether the endpoint bills an idempotency key once."""
        return self.unsure == "resend"


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a plan may cost, before anything is sent.

    Attributes:
        requests: how many.
        prompt_tokens: upper bound, a token a byte.
        answer_tokens: upper bound.
        most: price of those.
        likely: price at four bytes a prompt token and answers of half the limit.
    """

    requests: int
    prompt_tokens: int
    answer_tokens: int
    most: float
    likely: float


def estimate(plan: Plan, prices: Prices) -> Estimate:
    """Price a plan without asking anybody."""
    prompts = sum(plan.request(i).most_prompt_tokens for i in range(plan.count))
    answers = plan.count * plan.sampling.max_tokens
    return Estimate(plan.count, prompts, answers, prices.of(prompts, answers), prices.of(prompts // 4, answers // 2))


@dataclass(frozen=True, slots=True)
class Collected:
    """How a session of asking ended.

    Attributes:
        totals: of all sessions.
        lost: requests that an earlier kill had left on their way.
        sent: attempts of this session.
        stopped: why it ended: ``all``, ``budget`` or ``failures`` (some requests used up their attempts).
    """

    totals: Totals
    lost: int
    sent: int
    stopped: str


def collect(
    plan: Plan,
    teacher: TextTeacher,
    ledger: Ledger,
    asking: Asking,
    prices: Prices,
    *,
    stop: Callable[[], bool] = lambda: False,
    on_answer: Callable[[int], None] = lambda done: None,
) -> Collected:
    """Ask everything that ``ledger`` has no answer for yet.

    Requests go out in order; which of them are asked depends neither on the concurrency nor on the order in which
    answers come. A request is in the ledger before it is sent. Nothing is sent whose highest price would pass the
    budget.

    Args:
        plan: the requests.
        teacher: who answers.
        ledger: where everything is kept.
        asking: concurrency, limits, retries.
        prices: of the teacher's tokens.
        stop: asked between requests; true ends the session when those on their way have come back.
        on_answer: called with the number of answers of this session after each.

    Raises:
        RunError: the teacher cannot be reached, or refuses every request; what was answered is kept.
        Interrupted: ``stop`` said so.
    """
    return asyncio.run(_Session(plan, teacher, ledger, asking, prices, stop, on_answer).run())


class _Session:
    def __init__(
        self, plan: Plan, teacher: TextTeacher, ledger: Ledger, asking: Asking, prices: Prices,
        stop: Callable[[], bool], on_answer: Callable[[int], None],
    ) -> None:  # fmt: skip
        self.plan, self.teacher, self.ledger, self.asking, self.prices = plan, teacher, ledger, asking, prices
        self.stop, self.on_answer = stop, on_answer
        self.sent, self.answered, self.gave_up, self.pending = 0, 0, 0, 0.0
        self.fatal: Failed | None = None
        self.next_request = self.next_tokens = 0.0  # when the next may begin under either limit
        self.jitter = random.Random(plan.seed)

    async def run(self) -> Collected:
        lost, settled = self.ledger.recover(), self.ledger.settled()
        waiting = [i for i in range(self.plan.count) if i not in settled]
        running: set[asyncio.Task[None]] = set()
        stopped = "all"
        try:
            for ordinal in waiting:
                request = self.plan.request(ordinal)
                while len(running) >= self.asking.concurrency or (running and not self._affordable(request)):
                    running = await self._some(running)
                if self.fatal or self.stop():
                    break
                if not self._affordable(request):
                    stopped = "budget"
                    break
                self.pending += self._reserve(request)
                running.add(asyncio.create_task(self._settle(request)))
                await asyncio.sleep(0)
            while running:
                running = await self._some(running)
        finally:
            for task in running:
                task.cancel()
            await self.teacher.close()
        return self._ended(lost, stopped)

    def _ended(self, lost: int, stopped: str) -> Collected:
        totals = self.ledger.totals()
        left = self.plan.count - totals.done - totals.unsure - totals.refused
        if self.fatal is not None:
            raise RunError(f"{self.fatal}; {totals.done} of {self.plan.count} requests are answered and kept")
        if self.stop() and left:
            raise Interrupted(
                f"stopped with {totals.done} of {self.plan.count} requests answered: run the same command to go on"
            )
        return Collected(totals, lost, self.sent, "failures" if stopped == "all" and self.gave_up else stopped)

    async def _some(self, running: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
        done, left = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()  # an error of ours, such as a full disk, ends the session
        return left

    def _reserve(self, request: Request) -> float:
        return self.prices.of(request.most_prompt_tokens, request.sampling.max_tokens)

    def _affordable(self, request: Request) -> bool:
        """Whether the highest price of ``request`` fits the budget beside what is spent and what is on its way."""
        budget = self.asking.budget
        return not budget or self.ledger.totals().spent + self.pending + self._reserve(request) <= budget

    async def _settle(self, request: Request) -> None:
        """Ask until there is an answer, or no sense in asking again; write each attempt before it is sent."""
        reserve = self._reserve(request)
        for attempt in range(self.asking.attempts):
            if attempt and not self._affordable(request):
                self.gave_up += 1
                return
            self.pending += reserve if attempt else 0.0
            await self._start(request)
            self.pending -= reserve
            if self.fatal or self.stop():
                return
            self.ledger.send(request, reserve)
            self.sent += 1
            try:
                answer = await self.teacher.ask(request)
            except Failed as failure:
                last = attempt == self.asking.attempts - 1
                if not self._again(request, failure, last):
                    return
                await asyncio.sleep(self._pause(attempt, failure.wait))
            else:
                self._give_back(request, answer)
                self.ledger.answered(request, answer, self._cost(request, answer))
                self.answered += 1
                self.on_answer(self.answered)
                return

    def _again(self, request: Request, failure: Failed, last: bool) -> bool:
        """Write a failed attempt down; whether to try once more."""
        unsure, final = failure.kind == "unsure", last or self.asking.unsure == "leave"
        state = "refused" if failure.kind == "refused" else "again"
        if unsure and final and not self.asking.honours_keys:
            state = "unsure"
        self.ledger.failed(request, state, str(failure), failure.raw, unsure)
        if failure.kind == "fatal" or (failure.kind == "unreachable" and last):
            self.fatal = self.fatal or failure
            return False
        if failure.kind == "refused":
            return False
        stays = last or state == "unsure"
        self.gave_up += stays
        return not stays

    def _cost(self, request: Request, answer: Answer) -> float:
        """Price of an answer by its stated usage; where nothing is stated, the most that it may be."""
        asked = request.most_prompt_tokens if answer.prompt_tokens is None else answer.prompt_tokens
        said = request.sampling.max_tokens if answer.answer_tokens is None else answer.answer_tokens
        return self.prices.of(asked, said)

    def _pause(self, attempt: int, asked: float) -> float:
        """Exponential back-off with half of it drawn, or what the server asks where that is longer."""
        most = min(self.asking.longest_wait, self.asking.backoff * 2.0**attempt)
        return max(asked, most * (0.5 + 0.5 * self.jitter.random()))

    async def _start(self, request: Request) -> None:
        """Wait for the next place under the limits of requests and of tokens, and take it.

        A request takes as many tokens as it may need at most; what it did not need is given back with its answer.
        """
        asking = self.asking
        if not (asking.per_minute or asking.tokens_per_minute):
            return
        now = asyncio.get_running_loop().time()
        at = max(now, self.next_request, self.next_tokens)
        if asking.per_minute:
            self.next_request = at + 60.0 / asking.per_minute
        if asking.tokens_per_minute:
            self.next_tokens = at + self._minutes(_most_tokens(request)) * 60.0
        await asyncio.sleep(at - now)

    def _give_back(self, request: Request, answer: Answer) -> None:
        """Give back the tokens that an answer states it did not need."""
        if self.asking.tokens_per_minute and answer.prompt_tokens is not None and answer.answer_tokens is not None:
            unused = _most_tokens(request) - answer.prompt_tokens - answer.answer_tokens
            self.next_tokens -= self._minutes(max(0, unused)) * 60.0

    def _minutes(self, tokens: int) -> float:
        return tokens / self.asking.tokens_per_minute


def _most_tokens(request: Request) -> int:
    return request.most_prompt_tokens + request.sampling.max_tokens
