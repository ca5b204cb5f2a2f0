from __future__ import annotations

import pytest

from limbeck.config import build, dump, load
from limbeck.decode.settings import Decoding
from limbeck.errors import ConfigError


def test_default_is_greedy_and_round_trips(tmp_path):
    decoding = Decoding()
    assert decoding.greedy and decoding.outputs == 1
    other = Decoding(temperature=0.7, top_k=50, top_p=0.95, stop=("\n", "Question:"), samples=3)
    file = tmp_path / "decoding.yaml"
    file.write_text(dump(other))
    assert load(Decoding, file, {}) == other and other.outputs == 3 and not other.greedy


def test_outputs_of_a_beam_search():
    assert Decoding(beams=4, n_best=2).outputs == 2
    assert not Decoding(beams=4).greedy


def test_one_stop_text_may_be_given_bare():
    assert Decoding(stop="\n").stop == ("\n",)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"beams": 4, "temperature": 0.7}, "does not sample"),
        ({"beams": 4, "samples": 2}, "does not sample"),
        ({"n_best": 2}, "beam search"),
        ({"length_penalty": 0.6}, "beam search"),
        ({"beams": 2, "n_best": 3}, "more than the 2 beams"),
        ({"top_k": 5}, "no effect at temperature 0"),
        ({"top_p": 0.9, "min_p": 0.1}, "top_p and min_p"),
        ({"samples": 2}, "copies"),
        ({"stop": ["a", ""]}, "empty stop"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"temprature": 1}, "did you mean 'temperature'"),
    ],
)
def test_refused_with_one_sentence(values, word):
    with pytest.raises(ConfigError, match=word):
        build(Decoding, values)


def test_a_recipe_seeds_what_has_no_seed_of_its_own():
    assert Decoding(temperature=1.0).seeded(3) == Decoding(temperature=1.0, seed=3)
    assert Decoding(temperature=1.0, seed=5).seeded(3).seed == 5
