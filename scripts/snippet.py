"""Run the Python that the README shows, and more, on a model of your choice: ``snippet.py [MODEL [WIKITEXT]]``.

WIKITEXT is the test part of WikiText-2, for a perplexity by protocol. Without MODEL a tiny one
is trained on toy data first. Everything is written below the current folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import limbeck

STEPS = 4
"""Optimizer steps of each training: enough to show that it runs, not to learn anything."""


def main(name: str | None = None, wikitext: str | None = None) -> None:
    """Load, generate, measure, save, export, train, distil, quantize, evaluate and compare."""
    quick = {"probes": "off", "measuring": {"generate": False}}
    if name is None:
        shape = {"preset": "toy", "layers": 2, "hidden_size": 32, "heads": 2, "kv_heads": 1, "context": 1024}
        tiny = limbeck.pretrain(
            "toy:stories", limit=100, vocab_size=300, architecture=shape, context=64, steps=STEPS, out="runs/tiny",
            **quick,
        )  # fmt: skip
        name = str(tiny.path)
    stories = [f"Once upon a time there was a cat called number {n}. It slept, and it was happy." for n in range(150)]
    Path("stories.txt").write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    Path("train.txt").write_text("\n<|endoftext|>\n".join(stories[::-1]), encoding="utf-8")
    rows = [f"What is {n} plus one?,{n + 1}" for n in range(60)]
    Path("qa.csv").write_text("\n".join(["question,answer", *rows[:50]]) + "\n", encoding="utf-8")
    Path("test.csv").write_text("\n".join(["question,answer", *rows[50:]]) + "\n", encoding="utf-8")

    model = limbeck.load(name)
    print(model, model.generate("Once upon a time", max_new_tokens=12))
    print("".join(model.stream("Once upon a time", max_new_tokens=12)))
    print(model.perplexity("stories.txt"))
    if wikitext is not None:
        metric = model.perplexity(wikitext, protocol="wikitext2-512")
        print(metric.name, metric, metric.protocol["context"])
    model.save("folder")
    exported = model.export("file.gguf", to="gguf")
    verified = limbeck.verify("folder", exported.path).report
    print("equal:", verified["equal"], [finding["message"] for finding in verified["findings"]])
    result = limbeck.finetune(
        model, data="qa.csv", task="qa", techniques=[limbeck.LoRA(rank=8)], out="runs/qa", steps=STEPS, **quick
    )
    taught = limbeck.distill(teacher=model, layers=1, data="stories.txt", out="runs/student", steps=STEPS, **quick)
    print(taught.metrics["nats per token"], taught.alarms, taught.path)
    small = limbeck.quantize(model, limbeck.GPTQ(bits=4), calibration="train.txt", out="runs/int4")
    print(small.report["told"][0])
    for made, out in ((result, "runs/a"), (model, "runs/b")):
        print(limbeck.evaluate(made, task="qa", data="test.csv", out=out, **quick))
    compared = limbeck.compare("runs/a", "runs/b")
    print(compared.report["comparisons"]["nats per token"]["verdict"])
    print(result.model, result.metrics, result.alarms, result.path, result.open(show=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
