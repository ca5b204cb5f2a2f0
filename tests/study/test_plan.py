from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.config import build
from limbeck.errors import ConfigError
from limbeck.jobs.recipe import Display
from limbeck.study.plan import StudyPlan
from limbeck.study.study import run_plan


def plan(**arms: object) -> StudyPlan:
    return build(StudyPlan, {"arms": arms})


def test_order_runs_what_is_needed_first() -> None:
    p = plan(
        student={"verb": "distill", "values": {"teacher": "@teacher"}},
        teacher={"verb": "finetune", "values": {"model": "@base"}},
        base={"verb": "pretrain"},
    )
    assert p.order() == ["base", "teacher", "student"]


def test_references_become_folders_and_common_values_go_where_they_are_known() -> None:
    p = build(
        StudyPlan,
        {
            "common": {"data": "toy:qa", "alpha": 1.0},
            "arms": {
                "teacher": {"verb": "pretrain"},
                "student": {"verb": "distill", "values": {"teacher": "@teacher", "nested": [{"x": "@teacher"}]}},
            },
        },
    )
    values = p.values("student", {"data", "teacher"}, {"teacher": "out/teacher/seed-0"})
    assert values == {"data": "toy:qa", "teacher": "out/teacher/seed-0", "nested": [{"x": "out/teacher/seed-0"}]}


def test_over_unfolds_into_one_arm_a_combination() -> None:
    p = plan(
        lora={
            "verb": "finetune",
            "label": "LoRA",
            "over": {"rank": [1, 2], "alpha": [8]},
            "values": {"techniques": [{"kind": "lora", "rank": "$rank", "alpha": "$alpha"}]},
        }
    )
    assert list(p.arms) == ["lora/rank=1,alpha=8", "lora/rank=2,alpha=8"]
    arm = p.arms["lora/rank=2,alpha=8"]
    assert arm.values == {"techniques": [{"kind": "lora", "rank": 2, "alpha": 8}]}
    assert arm.label == "LoRA rank=2,alpha=8"


def test_environment_is_read_and_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    p = plan(a={"verb": "pretrain", "values": {"data": "${LIMBECK_TEST_DIR}/x.txt"}})
    monkeypatch.setenv("LIMBECK_TEST_DIR", "somewhere")
    assert p.values("a", set(), {}) == {"data": "somewhere/x.txt"}
    monkeypatch.delenv("LIMBECK_TEST_DIR")
    with pytest.raises(ConfigError, match="LIMBECK_TEST_DIR.*export"):
        p.values("a", set(), {})


def test_unknown_arms_are_named() -> None:
    with pytest.raises(ConfigError, match="no arm.*did you mean 'teacher'"):
        plan(teacher={"verb": "pretrain"}, student={"verb": "distill", "values": {"teacher": "@teachr"}}).order()
    with pytest.raises(ConfigError, match="no arm is called 'studnt'; did you mean 'student'"):
        build(StudyPlan, {"arms": {"student": {"verb": "pretrain"}}, "show": ["studnt"]})


def test_arms_that_need_each_other_are_an_error() -> None:
    p = plan(
        a={"verb": "distill", "values": {"teacher": "@b"}},
        b={"verb": "distill", "values": {"teacher": "@a"}},
    )
    with pytest.raises(ConfigError, match="a -> b -> a"):
        p.order()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"arms": {"a": {"verb": "finetune", "over": {"rank": [1], "lr": [1, 2]}, "values": {"x": ["$rank"]}}}},
            r"arm 'a' varies 'lr', which none of its values reads: write \"\$lr\" where it goes",
        ),
        (
            {"arms": {"a": {"verb": "finetune", "over": {"rank": [1, 1]}, "values": {"x": {"y": "$rank"}}}}},
            "arm 'a' gives 'rank' the same value twice",
        ),
        ({"arms": {"a": {"verb": "finetune", "values": {"out": "x"}}}}, "arm 'a' sets 'out'.*give --out to the study"),
        ({"arms": {"a": {"verb": "finetune"}}, "common": {"seed": 3}}, "common sets 'seed'.*list it under seeds"),
        ({"arms": {"a": {"verb": "finetune"}}, "compare": [["a", "a"]]}, "compare holds 'a' against itself"),
    ],
)
def test_what_nothing_reads_is_refused(values: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build(StudyPlan, values)


def test_a_common_value_that_no_verb_reads_is_refused(tmp_path: Path) -> None:
    values = {"arms": {"a": {"verb": "finetune", "values": {"model": "m", "data": "d"}}}, "common": {"contxt": 8}}
    with pytest.raises(ConfigError, match="common sets 'contxt', which no arm's verb reads; did you mean 'context'"):
        run_plan(build(StudyPlan, values), tmp_path, Display.silent())
