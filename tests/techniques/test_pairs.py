"""Every ordered pair of techniques is refused, or composes with nothing of either lost."""

from __future__ import annotations

import itertools

import pytest

from limbeck.config import build
from limbeck.errors import ConfigError
from limbeck.techniques.pairs import REFUSED, check_pairs
from limbeck.techniques.table import TECHNIQUES
from limbeck.techniques.technique import apply_all, convert_all
from limbeck.verbs.table import recipe
from tests.reference.techniques import EXAMPLES, base, calibration

ALL = list(itertools.product(TECHNIQUES, repeat=2))
QUANTIZERS = {name for name, kind in TECHNIQUES.items() if kind.rounds}
AFTER_ANY = {"depth", "rotate", "sparse_attention"} | QUANTIZERS
"""What changes the model itself, as against which parameters are trained."""


@pytest.mark.parametrize(("earlier", "later"), ALL)
def test_every_pair_is_defined_or_refused(earlier: str, later: str) -> None:
    pair = (EXAMPLES[earlier][0], EXAMPLES[later][0])
    if (earlier, later) in REFUSED:
        with pytest.raises(ValueError, match=f"'{later}' cannot follow '{earlier}' among the techniques: .{{20}}"):
            check_pairs(pair)
        return
    check_pairs(pair)
    assert earlier in AFTER_ANY or later == "sparse_attention"  # the later one does not undo what is trained
    model = apply_all(pair, base("gpt2"), calibration())
    assert {n for n, p in model.named_parameters() if p.requires_grad} == pair[-1].trained(model)
    if earlier in ("freeze", "lora"):  # and what is trained is still what the earlier one chose
        assert pair[0].trained(model) == pair[-1].trained(model)
    convert_all(pair, model)


def test_the_table_names_registered_techniques_alone() -> None:
    assert {name for pair in REFUSED for name in pair} <= set(TECHNIQUES)


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        (("freeze", "lora"), "'lora' cannot follow 'freeze'"),
        (("lora", "depth", "freeze"), "'depth' cannot follow 'lora'"),
        (("lora", "sparse_attention", "freeze"), "'freeze' cannot follow 'lora'"),
        (("rtn", "depth", "gptq"), "'gptq' cannot follow 'rtn'"),
    ],
)
def test_a_recipe_refuses_what_cancels(names: tuple[str, ...], refused: str) -> None:
    values = {"model": "m", "data": "d", "techniques": [{"kind": name} for name in names]}
    if "depth" in names:
        values["techniques"] = [{"kind": n} | ({"layers": 2} if n == "depth" else {}) for n in names]
    with pytest.raises(ConfigError, match=refused):
        build(recipe("finetune"), values)


def test_what_is_common_is_accepted() -> None:
    check_pairs([EXAMPLES[name][0] for name in ("depth", "sparse_attention", "rtn", "lora")])
    check_pairs([EXAMPLES[name][0] for name in ("depth", "qat", "freeze")])
