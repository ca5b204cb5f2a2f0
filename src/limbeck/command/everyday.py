"""The flags that ``--help`` shows, and an example of each verb."""

from __future__ import annotations

from collections.abc import Sequence

from limbeck.command.flags import MISSING, Flag

__all__ = ["EXAMPLES", "MOST", "everyday"]

MOST = 25
"""Most flags that ``--help`` shows, those of every verb included."""

_NAMES = (
    "model", "teacher", "adapter", "data", "task", "technique", "out", "train.steps", "train.epochs",
    "train.learning-rate", "batch-size", "context", "valid", "test", "calibration", "columns", "limit", "seed",
    "device", "dtype", "train.precision", "train.patience", "train.evaluate-every", "probes", "audit", "alpha", "beta",
    "temperature", "shots", "rows", "part", "against", "within", "metric", "margin", "samples", "to", "type",
    "overwrite", "prompts", "chat", "decoding.max-new-tokens", "decoding.temperature", "decoding.top-p", "base",
    "memory", "dry-run", "architecture.preset", "vocab-size", "tokenizer", "host", "port", "api-key-file", "name",
    "draft", "url",
)  # fmt: skip
"""Long names of flags that most people use, the most used first."""

EXAMPLES = {
    "demo": "limbeck demo",
    "pretrain": "limbeck pretrain --data toy:stories --preset toy --steps 200 --out runs/tiny",
    "finetune": "limbeck finetune --model gpt2 --data qa.csv --task qa --technique lora --lora.rank 8 --out runs/qa",
    "distill": "limbeck distill --teacher runs/tiny --data toy:stories --technique depth --depth.layers 2 --steps 200",
    "dpo": "limbeck dpo --model runs/chat --data preferences.jsonl --beta 0.1 --out runs/dpo",
    "quantize": "limbeck quantize gpt2 --data test.txt --technique gptq --calibration train.txt --out runs/int4",
    "evaluate": "limbeck evaluate runs/tiny --data toy:stories --out runs/measured",
    "harness": "limbeck harness runs/tiny hellaswag arc_easy --shots 0 --limit 200",
    "score": "limbeck score predictions.txt --task sonnets --data poems.txt",
    "audit": "limbeck audit train.csv --against test.csv",
    "generate": 'limbeck generate gpt2 "Once upon a time" --max-new-tokens 40 --temperature 0.8',
    "chat": "limbeck chat runs/chat --temperature 0.7",
    "serve": "limbeck serve runs/chat --port 8000",
    "info": "limbeck info gpt2",
    "list": "limbeck list techniques",
    "doctor": "limbeck doctor",
    "export": "limbeck export runs/tiny --to gguf --out tiny.gguf",
    "compare": "limbeck compare runs/a runs/b",
    "report": "limbeck report runs/a runs/b --out runs/page",
    "study": "limbeck study study.yaml --out runs/study",
    "certify": "limbeck certify runs/tiny runs/int8 --data test.txt --out runs/certificate",
    "fit": "limbeck fit search.yaml --trials 12 --out runs/fit",
    "verify": "limbeck verify runs/tiny tiny.gguf",
    "synthesize": "limbeck synthesize qa --model runs/tiny --count 100 --out runs/made",
    "self-distill": "limbeck self-distill --model gpt2 --data pairs.csv --out runs/own",
}
"""Verb -> a command that shows it; a verb without a line here has none in its help."""


def everyday(flags: Sequence[Flag], extra: int) -> list[Flag]:
    """Return the flags that most people use: those that a verb requires, then the named ones, in the verb's own order.

    Args:
        flags: every flag of the verb.
        extra: further options that its help lists, which count among ``MOST``.
    """
    rank = {name: at for at, name in enumerate(reversed(_NAMES))}
    named = [f for f in flags if f.member is None and not f.positional]
    wanted = sorted(named, key=lambda f: (f.default is MISSING, rank.get(f.name, -1)), reverse=True)
    few = len(named) + extra <= MOST
    kept = {f.name for f in wanted if few or f.name in rank or f.default is MISSING}
    kept = {f.name for f in wanted if f.name in kept} & {f.name for f in wanted[: MOST - extra]}
    return [f for f in flags if f.positional or (f.member is None and f.name in kept)]
