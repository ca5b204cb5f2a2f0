"""``limbeck verify``: is what was shipped the model that was measured?"""

from __future__ import annotations

from typing import ClassVar

from limbeck.jobs.recipe import Display, Report
from limbeck.jobs.verification import VerificationOptions, verification

__all__ = ["Verify"]


class Verify(VerificationOptions):
    """Compare two deployments of one model: tokens, template, stop tokens, settings, weights, logits, cache, greedy.

    A side is a folder, a run, a GGUF file or a Hub id. What differs is named: a field, a tensor with its part, or the
    first activation that differs. Rounding that a side's stored type explains is no difference. The target may also be
    the address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1, of which the tokenizer, the begin
    token, the chat template, stop tokens, log-probabilities and greedy continuations are compared.
    """

    verb: ClassVar[str] = "verify"
    summary: ClassVar[str] = "compare two deployments of one model, down to the first tensor that differs"

    def run(self, session: Display) -> Report:
        """Load both, compare."""
        return verification(self)
