"""Every verb and where its recipe stands; nothing is imported until it is asked for."""

from __future__ import annotations

from importlib import import_module

from limbeck.jobs.recipe import Recipe

__all__ = ["RECIPES", "recipe"]

RECIPES: dict[str, str] = {
    "demo": "limbeck.study.demo:Demo",
    "pretrain": "limbeck.verbs.pretrain:Pretrain",
    "finetune": "limbeck.verbs.finetune:Finetune",
    "distill": "limbeck.verbs.distill:Distill",
    "dpo": "limbeck.verbs.dpo:DPO",
    "self-distill": "limbeck.verbs.self_distill:SelfDistill",
    "synthesize": "limbeck.verbs.synthesize:Synthesize",
    "quantize": "limbeck.verbs.quantize:Quantize",
    "evaluate": "limbeck.verbs.evaluate:Evaluate",
    "harness": "limbeck.verbs.harness:Harness",
    "score": "limbeck.verbs.score:Score",
    "audit": "limbeck.verbs.audit:Audit",
    "generate": "limbeck.verbs.generate:Generate",
    "chat": "limbeck.serve.chat:Chat",
    "serve": "limbeck.serve.serve:Serve",
    "info": "limbeck.verbs.info:Info",
    "list": "limbeck.verbs.listing:Listing",
    "doctor": "limbeck.verbs.doctor:Doctor",
    "export": "limbeck.verbs.export:Export",
    "verify": "limbeck.verbs.verify:Verify",
    "compare": "limbeck.verbs.compare:Compare",
    "certify": "limbeck.study.certify:Certify",
    "fit": "limbeck.study.fit:Fit",
    "study": "limbeck.study.study:Study",
    "report": "limbeck.study.report:WriteReport",
}
"""verb -> ``module:Class``: the registration line of a verb, in the order in which the help lists them."""


def recipe(verb: str) -> type[Recipe]:
    """Import and return the recipe class of ``verb``.

    Raises:
        KeyError: no such verb.
    """
    module, _, name = RECIPES[verb].partition(":")
    found: type[Recipe] = getattr(import_module(module), name)
    return found
