"""``distill --teacher-top-k``: written once, shared by runs, resumed, refused when stale, its cost reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import DataError
from limbeck.objectives import teacher_cache_build
from tests.reference.small_model import saved
from tests.reference.tiny_runs import run

COMMON: dict[str, Any] = {
    "data": "toy:stories", "limit": 20, "batch_size": 4, "dtype": "fp32", "probes": "off", "teacher_top_k": 8,
    "techniques": [{"kind": "depth", "layers": 1}], "train": {"steps": 2, "learning_rate": 1e-2},
    "measuring": {"generate": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(saved(tmp_path_factory.mktemp("m") / "teacher", context=32))


def contents(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def test_two_runs_share_it_and_what_it_costs_is_reported_of_the_student(
    tmp_path: Path, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {**COMMON, "teacher": teacher, "teacher_cache": str(tmp_path / "cache")}
    first = run("distill", out=str(tmp_path / "1"), **shared)["teacher_cache"]
    before = contents(tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(teacher_cache_build, "_ask", None)  # nothing is asked again
        second = run("distill", out=str(tmp_path / "2"), seed=1, **shared)["teacher_cache"]
    assert contents(tmp_path / "cache") == before and not (tmp_path / "1" / "teacher").exists()
    assert first["k"] == 8 and first["bytes"] == sum(map(len, before.values()))
    assert first["live_nats"] > 1e-3  # of the trained student, which is not the teacher
    assert first["difference_nats"] == pytest.approx(first["cached_nats"] - first["live_nats"], abs=1e-12)
    assert first["cached_nats"] < first["live_nats"]  # tokens in one bucket are not told apart
    assert second["live_nats"] != first["live_nats"]
    whole = run("distill", out=str(tmp_path / "3"), **{**COMMON, "teacher": teacher, "teacher_top_k": 288})
    assert abs(whole["teacher_cache"]["difference_nats"]) < 1e-3 * whole["teacher_cache"]["live_nats"] + 1e-5
    assert (tmp_path / "3" / "teacher").is_dir()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"teacher_top_k": 4}, "k is 8, not 4"),
        ({"temperature": 2.0}, "temperature is 1.0, not 2.0"),
        ({"limit": 24}, "data is "),
        ({"context": 16}, "template is "),
    ],
)
def test_a_stale_one_is_refused_before_a_run_is_made(
    tmp_path: Path, teacher: str, change: dict[str, Any], what: str
) -> None:
    shared = {**COMMON, "teacher": teacher, "teacher_cache": str(tmp_path / "cache")}
    run("distill", out=str(tmp_path / "1"), **shared)
    with pytest.raises(DataError, match=f"holds a teacher cache of something else: its .*{what}"):
        run("distill", out=str(tmp_path / "2"), **{**shared, **change})
    assert not (tmp_path / "2").exists()


def test_one_that_was_cut_short_goes_on(tmp_path: Path, teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {**COMMON, "teacher": teacher, "teacher_cache": str(tmp_path / "whole")}
    want = run("distill", out=str(tmp_path / "1"), **whole)
    asked: list[int] = []
    real = teacher_cache_build._ask

    def killed(teacher: Any, part: Any, *rest: Any) -> Any:
        asked.append(len(part))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(teacher, part, *rest)

    torn = {**whole, "teacher_cache": str(tmp_path / "torn")}
    monkeypatch.setattr(teacher_cache_build, "_ask", killed)
    with pytest.raises(KeyboardInterrupt):
        run("distill", out=str(tmp_path / "2"), **torn)
    again = run("distill", out=str(tmp_path / "2"), **torn)
    assert again["metrics"] == want["metrics"]
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")
