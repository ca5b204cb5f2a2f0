"""Comparison of two deployments of one model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue
from rich.console import RenderableType
from rich.text import Text

from limbeck.errors import ConfigError, RunError
from limbeck.formats.load import load_bundle
from limbeck.jobs.recipe import Recipe, Report, facts
from limbeck.jobs.source import device_of, dtype_of
from limbeck.measure.equivalence import DeploymentCheck, compare
from limbeck.measure.server_check import ServedModel, compare_with_server
from limbeck.measure.sides import BundleSide, Side, TransformersSide
from limbeck.model.cache import KVKind
from limbeck.synth.endpoint import key_from_environment

__all__ = ["VerificationOptions", "verification"]


_SERVER: dict[str, JsonValue] = {"section": "server"}


class VerificationOptions(Recipe):
    """Two deployments, and how they are compared."""

    source: str = Field(description="the model that was measured", json_schema_extra={"positional": True})
    target: str = Field(description="what was shipped", json_schema_extra={"positional": True})
    engine: Literal["limbeck", "transformers"] = Field(
        "limbeck", description="what runs the target: transformers opens Hugging Face folders alone"
    )
    cache: KVKind = Field("model", description="cache of keys and values of the target in Limbeck")
    text: str | None = Field(None, description="text file whose first tokens are the prompts; default: random tokens")
    new_tokens: int = Field(16, ge=1, le=256, description="tokens of each greedy continuation")
    strict: bool = Field(False, description="fail (exit code 1) where the two differ")
    name: str | None = Field(
        None, description="what a server calls its model; none: the first that it lists", json_schema_extra=_SERVER
    )
    key_variable: str = Field(
        "LIMBECK_API_KEY", description="environment variable that holds the server's key", json_schema_extra=_SERVER
    )
    tolerance: float = Field(
        0.05, gt=0, description="difference of a server's log-probability, in nats, that rounding explains",
        json_schema_extra=_SERVER,
    )  # fmt: skip

    @property
    def of_server(self) -> bool:
        """Is the target the address of a server?"""
        return self.target.startswith(("http://", "https://"))


def verification(options: VerificationOptions) -> Report:
    """Load both, compare.

    Raises:
        ConfigError: a cache was asked of transformers.
        RunError: they differ, and ``strict`` was given.
    """
    if options.of_server:
        return _of_server(options)
    given = sorted({"name", "key_variable", "tolerance"} & options.model_fields_set)
    if given:
        raise ConfigError(f"{', '.join(given)} belong to a server: {options.target} is none, leave them out")
    if options.engine == "transformers" and options.cache != "model":
        raise ConfigError("'cache' is of Limbeck's decoder: leave it out with --engine transformers")
    texts = [] if options.text is None else _paragraphs(Path(options.text).expanduser())
    result = compare(_side(options, options.source), _target(options), texts=texts, new_tokens=options.new_tokens)
    if options.strict and not result.equal:
        told = "; ".join(finding.message for finding in result.findings[:3])
        raise RunError(f"{options.target} is not {options.source}: {told}")
    return _report(result)


def _of_server(options: VerificationOptions) -> Report:
    """Compare a model with the one behind a server.

    Raises:
        ConfigError: an engine or a cache was chosen, which are the server's own, or there is no key.
        RunError: the server cannot be reached; or they differ, and ``strict`` was given.
    """
    if options.engine != "limbeck" or options.cache != "model":
        raise ConfigError("engine and cache are the server's own: leave them out with the address of a server")
    texts = [] if options.text is None else _paragraphs(Path(options.text).expanduser())
    source = BundleSide(load_bundle(options.source, dtype_of(options.dtype), device_of(options.device)), options.source)
    key = key_from_environment(options.key_variable, options.target)
    served = ServedModel(options.target, options.name, key)
    try:
        result = compare_with_server(
            source, served, texts=texts, new_tokens=options.new_tokens, tolerance=options.tolerance
        )
    finally:
        served.close()
    if options.strict and not result.equal:
        told = "; ".join(finding.message for finding in result.findings[:3])
        raise RunError(f"{result.target} is not {options.source}: {told}")
    values: dict[str, Any] = {"verb": "verify", "equal": result.equal, **asdict(result)}
    largest = result.max_difference_nats
    rows = [
        ("verdict", "nothing differs" if result.equal else f"{len(result.findings)} differences"),
        ("prompts", f"{result.prompts} texts and conversations, counted in tokens"),
        (
            "log-probabilities",
            "not given by the server" if largest is None else f"differ by at most {largest:.2g} nats",
        ),
        ("greedy", f"{result.greedy_agreed} of {result.greedy_texts} continuations agree"),
    ]
    notes = [Text(f"{finding.kind}: {finding.message}", style="yellow") for finding in result.findings]
    notes += [Text(f"not tested: {one}", style="dim") for one in result.untested]
    return Report(values, (facts(f"{result.source} and {result.target}", rows), *notes))


def _side(options: VerificationOptions, name: str, cache: KVKind = "model") -> Side:
    bundle = load_bundle(name, dtype_of(options.dtype), device_of(options.device))
    return BundleSide(bundle, name, cache)


def _target(options: VerificationOptions) -> Side:
    return (
        TransformersSide(options.target)
        if options.engine == "transformers"
        else _side(options, options.target, options.cache)
    )


def _paragraphs(file: Path) -> list[str]:
    """Return the first two paragraphs of at least 200 characters.

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
