"""The functions behind ``import limbeck``: each builds the config of a verb and runs the job that the command runs."""

from __future__ import annotations

from limbeck.api.evidence import audit, certify, compare, evaluate, fit, info, report, score, study, verify
from limbeck.api.forms import Named
from limbeck.api.models import distill, dpo, finetune, load, pretrain, quantize, self_distill, synthesize

__all__ = [
    "Named",
    "audit",
    "certify",
    "compare",
    "distill",
    "dpo",
    "evaluate",
    "finetune",
    "fit",
    "info",
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
