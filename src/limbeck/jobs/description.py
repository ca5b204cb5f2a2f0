"""Description of a model or a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import RenderableType

from limbeck.data.chat import ChatTemplate
from limbeck.formats.families.table import family_of
from limbeck.formats.hub import resolve
from limbeck.formats.load import Bundle
from limbeck.formats.stored import stored_dtypes
from limbeck.jobs.model_source import ModelSource
from limbeck.jobs.recipe import Recipe, Report, facts
from limbeck.jobs.reports.chat import describe_chat, show_chat
from limbeck.measure.cost import disk_bytes, folder_bytes
from limbeck.model.pattern_cost import pattern_costs
from limbeck.model.patterns import picture
from limbeck.run import Run

__all__ = ["DescriptionOptions", "best_of", "description"]

_MB = 1e6
_LEGEND = ("a row", "queries from first to last; a column: keys; # most are seen, + some, . none")


class DescriptionOptions(ModelSource, Recipe):
    """A model or a run, and what to show of it."""

    chat: str | None = Field(
        None,
        description="show a conversation as this chat template lays it out, what is learned marked: auto (the model's "
        "own, else turns), turns, bare, a .jinja file, or Jinja text",
        json_schema_extra={"verbatim": True},
    )
    length: int | None = Field(
        None, ge=1, description="tokens for which the cost of attention is shown; none: the model's context"
    )


def description(options: DescriptionOptions) -> Report:
    """Load what is there and describe it.

    Raises:
        ModelError: the name leads to no model that can be loaded.
    """
    values: dict[str, Any] = {"verb": options.verb, "name": options.model}
    body: list[RenderableType] = []
    folder = Path(options.model).expanduser()
    run = Run.open(folder) if (folder / "recipe.yaml").is_file() else None
    if run is not None:
        values["run"] = _run(run)
        body.append(facts(f"run {options.model}", _run_rows(values["run"])))
    if run is None or (run.model / "config.json").is_file():
        bundle = options.load(options.dtype, options.device)
        values["model"] = _model(bundle, options.length)
        body.append(facts(f"model {options.model}", _model_rows(values["model"])))
        body += _pictures(bundle, options.length)
        if options.chat is not None:
            template = ChatTemplate.named(options.chat, bundle.tokenizer)
            values["chat"] = describe_chat(template)
            body += show_chat(template)
    report = Report(values, tuple(body))
    if options.out is not None:
        report.write(Path(options.out) / "info.json")
    return report


def _pictures(bundle: Bundle, length: int | None) -> list[RenderableType]:
    """Return a drawing of each pattern that hides something; none of dense attention."""
    costs = pattern_costs(bundle.model.config, length or bundle.model.config.context)
    return [
        facts(f"{c.pattern.kind} attention over {c.length:,} tokens", [_LEGEND, *(("", line) for line in lines)])
        for c in costs
        if not c.pattern.is_causal(c.length)
        for lines in [picture(c.pattern, c.length).split("\n")]
    ]


def _model(bundle: Bundle, length: int | None = None) -> dict[str, Any]:
    """Everything that a model says of itself."""
    model, config, tokenizer = bundle.model, bundle.model.config, bundle.tokenizer
    folder = bundle.folder or resolve(bundle.source)
    folders = [folder, *([bundle.adapter] if bundle.adapter is not None else [])]
    dtype = str(model.dtype).removeprefix("torch.")
    return {
        "folder": str(folder),
        "adapter": None if bundle.adapter is None else str(bundle.adapter),
        "family": family_of(config)[0],
        "config": config.model_dump(mode="json"),
        "techniques": [r.model_dump(mode="json") for r in bundle.deployed_specs],
        "parameters": model.count_parameters(),
        "weights_bytes": sum(map(disk_bytes, folders)),
        "folder_bytes": sum(map(folder_bytes, folders)),
        "stored_dtypes": stored_dtypes(folder),
        "dtype": dtype,
        "memory_bytes": model.count_bytes(),
        "flops_per_token": {"context": config.context, "forward": model.flops_per_token(config.context)},
        "attention": [c.describe() | {"text": str(c)} for c in pattern_costs(config, length or config.context)],
        "kv_bytes_per_token": model.kv_bytes_per_token(),
        "kv_bytes": model.kv_bytes(config.context),
        "tokenizer": {
            "vocab_size": tokenizer.vocab_size,
            "eos_id": tokenizer.eos_id,
            "bos_id": tokenizer.bos_id,
            "pad_id": tokenizer.pad_id,
            "fingerprint": tokenizer.fingerprint,
            "chat_template": tokenizer.chat_template,
        },
        "generation": dict(bundle.generation),
    }


def _run(run: Run) -> dict[str, Any]:
    """How far a run is and what came of it."""
    recipe, lines = run.recipe(), run.metrics()
    training = recipe.get("train")
    return {
        "folder": str(run.path),
        "finished": run.finished,
        "step": max((line["step"] for line in lines), default=0),
        "best": best_of(lines, training if isinstance(training, Mapping) else {}),
        "scores": sorted(str(p) for p in run.scores.glob("*.jsonl")),
        "recipe": recipe,
        "report": run.report() if run.finished else None,
    }


def best_of(lines: list[dict[str, Any]], training: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the best value of the monitored metric in ``metrics.jsonl``, and its step; the first of equals."""
    name = training.get("monitor")
    seen = [(line[name], line["step"]) for line in lines if isinstance(line.get(name), int | float)] if name else []
    if not seen:
        return None
    sign = -1 if training.get("mode") == "max" else 1
    value, step = min(seen, key=lambda pair: sign * pair[0])
    return {"metric": name, "value": value, "step": step}


def _run_rows(run: Mapping[str, Any]) -> list[tuple[str, object]]:
    best, recipe = run["best"], run["recipe"]
    shown = f"{best['metric']} {best['value']:.4f} at step {best['step']}" if best else "nothing was monitored"
    told = {k: v for k, v in recipe.items() if not isinstance(v, dict | list) and v not in (None, "")}
    metrics = (run["report"] or {}).get("metrics") or {}
    return [
        ("state", f"{'finished' if run['finished'] else 'not finished'} at step {run['step']}"),
        ("best", shown),
        *((name, _figure(m)) for name, m in metrics.items()),
        *((name, str(value)) for name, value in told.items()),
        ("scores", ", ".join(Path(s).name for s in run["scores"]) or "none"),
    ]


def _figure(metric: Any) -> str:
    """Return a reported figure with its interval, where it has one."""
    if isinstance(metric, Mapping) and {"value", "low", "high"} <= metric.keys():
        return f"{metric['value']:.4g} [{metric['low']:.4g}, {metric['high']:.4g}] {metric.get('unit', '')}".rstrip()
    return str(metric)


def _model_rows(m: Mapping[str, Any]) -> list[tuple[str, object]]:
    c, flops, t = m["config"], m["flops_per_token"], m["tokenizer"]
    stored = ", ".join(f"{n} {kind}" for kind, n in m["stored_dtypes"].items())
    return [
        ("folder", m["folder"]),
        *([("adapter", m["adapter"])] if m["adapter"] else []),
        ("family", m["family"] or "none of transformers' (native layout)"),
        ("shape", f"{c['layers']} layers, {c['hidden_size']} wide, {c['heads']} heads "
                  f"({c['kv_heads']} for keys and values)"),
        ("parts", f"{c['positions']} positions, {c['norm']} norm, {'gated ' if c['gated'] else ''}{c['activation']}, "
                  f"feed-forward {c['ffn_width']}, head {'tied' if c['tied'] else 'untied'}"),
        ("techniques", ", ".join(r["kind"] for r in m["techniques"]) or "none"),
        ("context", f"{c['context']:,} tokens"),
        ("parameters", f"{m['parameters']:,}"),
        ("on disk", f"{m['weights_bytes'] / _MB:,.2f} MB of weights ({stored}), "
                    f"folder {m['folder_bytes'] / _MB:,.2f} MB"),
        ("in memory", f"{m['memory_bytes'] / _MB:,.2f} MB as {m['dtype']}"),
        ("arithmetic", f"{flops['forward'] / 1e6:,.2f} MFLOP a token that sees {flops['context']:,}"),
        *(("attention", part["text"]) for part in m["attention"]),
        ("cache", f"{m['kv_bytes_per_token']:,} bytes a token, {m['kv_bytes'] / _MB:,.2f} MB for the whole context"),
        ("tokenizer", f"{t['vocab_size']:,} ids for {c['vocab_size']:,} rows; end {t['eos_id']}, begin {t['bos_id']}, "
                      f"padding {t['pad_id']}; {t['fingerprint'][:12]}"),
        ("chat", t["chat_template"] or "no chat template"),
        ("generation", ", ".join(f"{k}={v}" for k, v in m["generation"].items()) or "no defaults"),
    ]  # fmt: skip
