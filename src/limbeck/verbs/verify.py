"""``limbeck verify``: is what was shipped the model that was measured?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from rich.console import RenderableType
from rich.text import Text

from limbeck.errors import ConfigError, RunError
from limbeck.formats.load import load_bundle
from limbeck.jobs.recipe import Display, Recipe, Report, facts
from limbeck.jobs.source import device_of, dtype_of
from limbeck.measure.equivalence import DeploymentCheck, compare
from limbeck.measure.sides import BundleSide, Side, TransformersSide
from limbeck.model.cache import KVKind

__all__ = ["Verify"]


class Verify(Recipe):
    """Compare two deployments of one model: tokens, template, stop tokens, settings, weights, logits, cache, greedy.

    A side is a folder, a run, a GGUF file or a Hub id. What differs is named: a field, a tensor with its part, or the
    first activation that differs. Rounding that a side's stored type explains is no difference.
    """

    verb: ClassVar[str] = "verify"
    summary: ClassVar[str] = "compare two deployments of one model, down to the first tensor that differs"

    source: str = Field(description="the model that was measured", json_schema_extra={"positional": True})
    target: str = Field(description="what was shipped", json_schema_extra={"positional": True})
    engine: Literal["limbeck", "transformers"] = Field(
        "limbeck", description="what runs the target: transformers opens Hugging Face folders alone"
    )
    cache: KVKind = Field("model", description="cache of keys and values of the target in Limbeck")
    text: str | None = Field(None, description="text file whose first tokens are the prompts; default: random tokens")
    new_tokens: int = Field(16, ge=1, le=256, description="tokens of each greedy continuation")
    strict: bool = Field(False, description="fail (exit code 1) where the two differ")

    def run(self, display: Display) -> Report:
        """Load both, compare.

        Raises:
            ConfigError: a cache was asked of transformers.
            RunError: they differ, and ``strict`` was given.
        """
        if self.engine == "transformers" and self.cache != "model":
            raise ConfigError("'cache' is of Limbeck's decoder: leave it out with --engine transformers")
        texts = [] if self.text is None else _paragraphs(Path(self.text).expanduser())
        result = compare(self._side(self.source), self._target(), texts=texts, new_tokens=self.new_tokens)
        if self.strict and not result.equal:
            told = "; ".join(finding.message for finding in result.findings[:3])
            raise RunError(f"{self.target} is not {self.source}: {told}")
        return _report(result)

    def _side(self, name: str, cache: KVKind = "model") -> Side:
        bundle = load_bundle(name, dtype_of(self.dtype), device_of(self.device))
        return BundleSide(bundle, name, cache)

    def _target(self) -> Side:
        return TransformersSide(self.target) if self.engine == "transformers" else self._side(self.target, self.cache)


def _paragraphs(file: Path) -> list[str]:
    """The first two paragraphs of at least 200 characters.

    Raises:
        ConfigError: the file cannot be read, or has none.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read as text: {error}") from None
    found = [part.strip() for part in text.split("\n") if len(part.strip()) >= 200][:2]
    if not found:
        raise ConfigError(f"{file} has no line of 200 characters or more to predict: give another text")
    return found


def _report(result: DeploymentCheck) -> Report:
    values: dict[str, Any] = {"verb": "verify", "equal": result.equal, **asdict(result)}
    f = result.flips
    rows = [
        ("verdict", "equal" if result.equal else f"{len(result.findings)} differences"),
        ("logits", f"KL {result.kl_nats:.3g} nats, top token {result.top_agreement:.2%} agree, largest difference "
                   f"{result.max_difference:.2g} of the largest logit"),
        ("flips", f"{f.right_to_wrong} right to wrong, {f.wrong_to_right} wrong to right, of {f.items} predictions"),
        ("greedy", f"{result.greedy_agreed} of {result.greedy_tokens} tokens before the first difference"),
    ]  # fmt: skip
    notes: list[RenderableType] = [
        Text(f"{finding.kind}: {finding.message}", style="yellow") for finding in result.findings
    ]
    return Report(values, (facts(f"{result.source} and {result.target}", rows), *notes))
