from __future__ import annotations

import pytest
from torch import nn

from limbeck.model.linear import Linear
from limbeck.model.surgery import find, matches, replace
from tests.reference.twins import gpt2_config, random_decoder


@pytest.mark.parametrize(
    ("pattern", "hit"),
    [
        ("qkv", True),
        ("attention.qkv", True),
        ("blocks.0.*", True),
        ("*qkv", True),
        ("blocks.[01].attention.qkv", True),
        ("kv", False),
        ("blocks.1.*", False),
        ("attention", False),
    ],
)
def test_a_name_matches_by_its_last_parts(pattern, hit):
    assert matches("blocks.0.attention.qkv", (pattern,)) is hit


def test_replacements_are_not_walked_into():
    model = random_decoder(gpt2_config())

    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

    names = replace(model, lambda name, m: isinstance(m, Linear), lambda name, m: Wrapped(m))
    assert len(names) == 2 * 4 + 1 and names[-1] == "head"
    assert all(isinstance(m.inner, Linear) for m in find(model, lambda name, m: isinstance(m, Wrapped)).values())


def test_parts_are_found_by_name():
    linear = Linear(3, {"q": 4, "k": 2, "v": 2})
    assert (linear.rows("q"), linear.rows("k"), linear.rows("v")) == (slice(0, 4), slice(4, 6), slice(6, 8))
    assert linear.weight.shape == (8, 3)
    with pytest.raises(KeyError):
        linear.rows("w")
