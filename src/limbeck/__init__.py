"""Limbeck adapts and shrinks GPT-class language models and shows what each saving costs.

``import limbeck`` imports next to nothing else: each name below is imported when it is first used.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from limbeck.processors import limit_threads

if TYPE_CHECKING:
    from limbeck.api.evidence import audit, certify, compare, evaluate, fit, info, report, score, study, verify
    from limbeck.api.models import distill, dpo, finetune, load, pretrain, quantize, self_distill, synthesize
    from limbeck.errors import LimbeckError
    from limbeck.handle import LanguageModel, job
    from limbeck.results import JobResult, Metric
    from limbeck.techniques.awq import AWQ
    from limbeck.techniques.depth import Depth
    from limbeck.techniques.freeze import Freeze
    from limbeck.techniques.gptq import GPTQ
    from limbeck.techniques.hqq import HQQ
    from limbeck.techniques.lora import LoRA
    from limbeck.techniques.mixed import Mixed
    from limbeck.techniques.qat import QAT
    from limbeck.techniques.rotate import Rotate
    from limbeck.techniques.rtn import RTN

limit_threads()

# Threads wait for each other some microseconds, not milliseconds, before they give their core away: in one run on
# busy cores the default took ten times as long (docs/lab-notes.md). Read when OpenMP is loaded, with torch.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__all__ = [
    "AWQ",
    "GPTQ",
    "HQQ",
    "QAT",
    "RTN",
    "Rotate",
    "Depth",
    "Freeze",
    "LanguageModel",
    "LimbeckError",
    "LoRA",
    "Metric",
    "Mixed",
    "JobResult",
    "audit",
    "certify",
    "compare",
    "distill",
    "dpo",
    "evaluate",
    "finetune",
    "fit",
    "info",
    "job",
    "load",
    "pretrain",
    "quantize",
    "report",
    "score",
    "self_distill",
    "study",
    "synthesize",
    "verify",
]

__version__ = "0.1.0"

_HOMES = {
    "AWQ": "techniques.awq",
    "GPTQ": "techniques.gptq",
    "HQQ": "techniques.hqq",
    "QAT": "techniques.qat",
    "Rotate": "techniques.rotate",
    "RTN": "techniques.rtn",
    "Depth": "techniques.depth",
    "Freeze": "techniques.freeze",
    "LoRA": "techniques.lora",
    "Mixed": "techniques.mixed",
    "LanguageModel": "handle",
    "job": "handle",
    "LimbeckError": "errors",
    "Metric": "results",
    "JobResult": "results",
}
"""Public name -> module that defines it; the names of ``__all__`` that are missing here are jobs of ``api``."""

_MODELS = ("distill", "dpo", "finetune", "load", "pretrain", "quantize", "self_distill", "synthesize")
"""Jobs that ``api.models`` defines; the others stand in ``api.evidence``."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'limbeck' has no attribute '{name}'")
    if name == "study":  # the room of that name, which can be called: importing it binds this name to it in any case
        return import_module("limbeck.study")
    home = _HOMES.get(name) or ("api.models" if name in _MODELS else "api.evidence")
    found = getattr(import_module(f"limbeck.{home}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
