"""A teacher in this process: a model of ours, asked as an endpoint is."""

from __future__ import annotations

import asyncio
import json

from limbeck.data.chat import ChatTemplate
from limbeck.decode.generate import generate
from limbeck.decode.settings import Decoding
from limbeck.errors import DataError
from limbeck.formats.load import Bundle
from limbeck.synth.teacher import Answer, Failed, Request

__all__ = ["LocalTeacher"]


class LocalTeacher:
    """A loaded model; one request at a time, on the device that it is on.

    Messages are laid out by the model's chat template; without one the texts stand one after the other, for a base
    model to go on from.
    """

    def __init__(self, bundle: Bundle, name: str) -> None:
        self.name, self.origin = name, "this process"
        self._bundle, self._turn = bundle, asyncio.Lock()
        template = bundle.tokenizer.chat_template
        self._template = None if template is None else ChatTemplate(template, bundle.tokenizer)

    def prompt_ids(self, request: Request) -> list[int]:
        """Return the token ids that are continued."""
        tokenizer = self._bundle.tokenizer
        if self._template is not None:
            return self._template.prompt_ids(list(request.messages))
        ids = tokenizer.encode("\n\n".join(m.content for m in request.messages))
        return tokenizer.with_begin(ids)

    async def ask(self, request: Request) -> Answer:
        """Generate the answer.

        Raises:
            Failed: the prompt does not fit into the model's context.
        """
        async with self._turn:
            return await asyncio.to_thread(self._generate, request)

    def _generate(self, request: Request) -> Answer:
        sampling = request.sampling
        greedy = sampling.temperature == 0
        decoding = Decoding(
            max_new_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=1.0 if greedy else sampling.top_p,
            seed=request.seed,
        )
        ids = self.prompt_ids(request)
        try:
            ((found,),) = generate(self._bundle.model, self._bundle.tokenizer, [ids], decoding)
        except DataError as error:
            raise Failed("refused", str(error)) from None
        finish = "length" if found.stopped == "length" else "stop"
        raw = json.dumps({"text": found.text, "ids": list(found.ids), "finish": finish})
        return Answer(found.text, raw, len(ids), found.tokens, finish)

    async def close(self) -> None:
        """Do nothing: nothing is held beyond the model."""
