from __future__ import annotations

import json

import pytest

from limbeck.storage import plain
from limbeck.study.analysis import analyse, analysis_tables, answer
from limbeck.study.stages import stage_markdown
from limbeck.study.table import groups
from tests.reference.finished_arms import arm

ARMS = [
    arm("base", 1.0, disk_bytes=4_000_000),
    arm("near", 1.001, disk_bytes=1_000_000, spread=0.01),
    arm("far", 3.0, disk_bytes=2_000_000),
]
KNOBS = {"near": {"bits": 8}, "far": {"bits": 4}}
LABELS = {a.name: a.label for a in ARMS}


def test_a_group_gets_front_kept_and_effects() -> None:
    found = analyse(groups(ARMS, [], None)[0], KNOBS, margin=0.05)
    assert found.axes == ("nats per token", "MB on disk", "ms / token")
    assert found.front["near"] > 0.99 and found.front["far"] < 0.01
    assert found.kept["near"]["answer"] == "kept" and found.kept["far"]["answer"] == "lost"
    assert [(e.levels, e.value) for e in found.effects][0] == (("8",), pytest.approx(-1.0, abs=0.05))
    json.dumps(plain(found.to_json()), allow_nan=False)
    text = stage_markdown(analysis_tables([found], LABELS))
    assert "P(on the front)" in text and "none found" in text and "kept within 5%" in text


def test_an_arm_without_a_cost_is_left_off_the_front_and_one_item_tells_nothing() -> None:
    arms = [*ARMS, arm("unknown", 1.0, disk_bytes=None, ms=None)]
    found = analyse(groups(arms, [], None)[0], {})
    assert "unknown" not in found.front and "unknown" in found.kept and found.effects == ()
    single = [arm("a", 1.0, items=1), arm("b", 2.0, items=1)]
    assert analyse(groups(single, [], None)[0], {}).front == {}


def test_the_answer_names_the_best_and_the_smallest_that_kept_it() -> None:
    group = groups(ARMS, [], None)[0]
    said = answer(group, analyse(group, {}, margin=0.05))
    assert (
        said.startswith("Best nats per token: ")
        and "Smallest that kept it within 5% of base: near, 1.00 MB (25%)" in said
    )
    assert "nothing else that was looked at broke" in said
    lone = groups([ARMS[0], ARMS[2]], [], None)[0]
    assert "No arm is shown to keep nats per token of base within 1%" in answer(lone, analyse(lone, {}))
