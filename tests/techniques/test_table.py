from __future__ import annotations

import pytest

from limbeck.config import Config, build
from limbeck.errors import ConfigError
from limbeck.techniques.freeze import Freeze
from limbeck.techniques.lora import LoRA
from limbeck.techniques.table import POST_TRAINING, TECHNIQUES, AnyTechnique, describe


class Holder(Config):
    techniques: tuple[AnyTechnique, ...] = ()


def test_the_kind_chooses_the_class():
    held = build(Holder, {"techniques": [{"kind": "freeze", "train": "half"}, {"kind": "lora", "rank": 4}]})
    assert held.techniques == (Freeze(train="half"), LoRA(rank=4))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "lorra"}, "not 'lorra'; did you mean 'lora'"),
        ({"rank": 3}, "needs a 'kind'"),
        ({"kind": "lora", "rnk": 3}, "did you mean 'rank'"),
        ({"kind": "lora", "rank": 0}, "at least 1"),
    ],
)
def test_what_names_no_technique_is_a_config_error(entry, message):
    with pytest.raises(ConfigError, match=message):
        build(Holder, {"techniques": [entry]})


def test_the_schema_tells_the_kinds_apart():
    found = Holder.model_json_schema()["properties"]["techniques"]["items"]["discriminator"]["mapping"]
    assert set(found) == set(TECHNIQUES)


def test_a_sentence_for_each():
    assert set(describe()) == set(TECHNIQUES)
    assert all(text.endswith(".") for text in describe().values())


def test_what_needs_no_training_is_told_by_the_techniques():
    assert {"rtn", "gptq", "mixed"} <= set(POST_TRAINING)
    assert not {"qat", "lora", "depth", "freeze"} & set(POST_TRAINING)
    assert all(kind.rounds for kind in POST_TRAINING.values())
