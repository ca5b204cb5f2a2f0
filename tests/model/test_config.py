from __future__ import annotations

import pytest
from pydantic import ValidationError

from limbeck.config import build
from limbeck.errors import ConfigError
from limbeck.model.config import DecoderConfig
from limbeck.model.patterns import Causal, Sliding


def test_sizes_that_are_left_out_follow_from_the_others():
    config = DecoderConfig(vocab_size=50, hidden_size=60, heads=6)
    assert (config.kv_heads, config.head_dim, config.ffn_width) == (6, 10, 240)
    assert DecoderConfig(vocab_size=50, hidden_size=60, heads=6, gated=True).ffn_width == 160
    assert DecoderConfig(vocab_size=50, hidden_size=64, heads=4, gated=True).ffn_width == 176  # 170.7 rounded up to 8
    assert DecoderConfig(vocab_size="50", hidden_size="64", heads="4").head_dim == 16  # as YAML or a flag may say it


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hidden_size": 30, "heads": 4}, "does not divide"),
        ({"hidden_size": 32, "heads": 4, "kv_heads": 3}, "3 key/value heads"),
        ({"hidden_size": 36, "heads": 4, "positions": "rope"}, "even head_dim"),
        ({"layers": 2, "pattern": [{"kind": "causal"}]}, "1 attention patterns were given for 2 layers"),
        ({"hidden_size": None}, "'hidden_size'"),
        ({"hidden_size": "wide"}, "'hidden_size'"),
        ({"hidden_size": float("inf")}, "'hidden_size'"),
        ({"heads": 0}, "heads"),
        ({"heads": -2}, "heads"),
        ({"layers": 10**9}, "'layers'"),
        ({"hiden_size": 32}, "did you mean 'hidden_size'"),
        ({"pattern": {"kind": "slding"}}, "pattern"),
        ({"pattern": {"kind": "sliding", "window": 0}}, "window"),
    ],
)
def test_values_that_cannot_be_are_one_sentence(values, words):
    with pytest.raises(ConfigError) as caught:
        build(DecoderConfig, {"vocab_size": 50, **values})
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_layers_are_chosen_with_their_patterns():
    mixed = DecoderConfig(
        vocab_size=50, hidden_size=32, heads=4, layers=3, pattern=(Causal(), Sliding(window=2), Causal())
    )
    assert mixed.with_layers((1, 2)).pattern == (Sliding(window=2), Causal())
    assert mixed.with_layers((0,)).layers == 1
    assert [mixed.pattern_at(i).kind for i in range(3)] == ["causal", "sliding", "causal"]
    even = DecoderConfig(vocab_size=50, hidden_size=32, heads=4, layers=3, pattern=Sliding(window=2))
    assert even.with_layers((0, 2)).pattern == Sliding(window=2)


def test_a_config_survives_its_own_json():
    scaling = {"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_context": 8}
    config = DecoderConfig(
        vocab_size=50, hidden_size=32, heads=4, layers=2, positions="rope",
        pattern=(Causal(), Sliding(window=2, sinks=1)),
        rope={"theta": 5e5, "scaling": scaling},
    )  # fmt: skip
    assert build(DecoderConfig, config.model_dump(mode="json")) == config == DecoderConfig.model_validate(config)
    with pytest.raises(ValidationError):
        DecoderConfig.model_validate("gpt2")
    assert hash(config.pattern_at(1)) == hash(Sliding(window=2, sinks=1))
