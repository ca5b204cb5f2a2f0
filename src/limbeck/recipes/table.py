"""Every verb and where its recipe stands; nothing is imported until it is asked for."""

from __future__ import annotations

from importlib import import_module

from limbeck.recipes.recipe import Recipe

__all__ = ["RECIPES", "recipe"]

RECIPES: dict[str, str] = {
    "demo": "limbeck.study.demo:Demo",
    "pretrain": "limbeck.recipes.pretrain:Pretrain",
    "finetune": "limbeck.recipes.finetune:Finetune",
    "distill": "limbeck.recipes.distill:Distill",
    "dpo": "limbeck.recipes.dpo:DPO",
    "synthesize": "limbeck.recipes.synthesize:Synthesize",
    "quantize": "limbeck.recipes.quantize:Quantize",
    "evaluate": "limbeck.recipes.evaluate:Evaluate",
    "score": "limbeck.recipes.score:Score",
    "audit": "limbeck.recipes.audit:Audit",
    "generate": "limbeck.recipes.generate:Generate",
    "info": "limbeck.recipes.info:Info",
    "export": "limbeck.recipes.export:Export",
    "compare": "limbeck.recipes.compare:Compare",
    "certify": "limbeck.study.certify:Certify",
    "fit": "limbeck.study.fit:Fit",
    "study": "limbeck.study.study:Study",
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
