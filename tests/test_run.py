"""The run folder: who may write in it, what it holds, and how it goes on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from getpass import getuser
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from limbeck import run as room
from limbeck.config import Config
from limbeck.errors import BusyError, ConfigError, DataError
from limbeck.run import Run
from tests.reference.metrics import same_but_time


class Inner(Config):
    rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2)


class Recipe(Config):
    name: str = "a"
    inner: Inner = Inner()


def test_a_new_run_has_its_parts(tmp_path: Path) -> None:
    with Run.create(tmp_path / "deep" / "run", Recipe()) as run:
        assert run.recipe() == {"name": "a", "inner": {"rate": 0.1, "sizes": [1, 2]}}
        assert run.checkpoints.is_dir() and run.scores.is_dir()
        assert not run.resumed and not run.finished
        assert run.describe() == f"run {run.path} is new"
    assert Run.open(run.path).recipe() == run.recipe()


def test_the_same_recipe_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    Run.create(tmp_path, Recipe()).close()
    with Run.create(tmp_path, Recipe()) as run:
        assert run.resumed and "goes on" in run.describe()
        run.log(1, loss=1.0)
    with pytest.raises(ConfigError, match=r"inner\.rate is 0\.1 there and 0\.2 here"):
        Run.create(tmp_path, Recipe(inner=Inner(rate=0.2)))


def test_many_differences_are_counted(tmp_path: Path) -> None:
    class Wide(Config):
        a: int = 0
        b: int = 0
        c: int = 0
        d: int = 0
        e: int = 0
        f: int = 0

    with Run.create(tmp_path, Wide()) as run:
        run.log(1, loss=1.0)
    with pytest.raises(ConfigError, match="and 2 more"):
        Run.create(tmp_path, Wide(a=1, b=1, c=1, d=1, e=1, f=1))


def test_a_finished_run_says_so(tmp_path: Path) -> None:
    with Run.create(tmp_path, Recipe()) as run:
        with pytest.raises(DataError, match="no report yet"):
            run.report()
        run.finish({"nll": 1.5})
    with Run.create(tmp_path, Recipe()) as again:
        assert again.finished and "is finished" in again.describe()
        assert again.report() == {"nll": 1.5}


def test_other_folders_and_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(ConfigError, match="not empty and holds no run"):
        Run.create(tmp_path, Recipe())
    with pytest.raises(ConfigError, match="is a file"):
        Run.create(tmp_path / "precious.txt", Recipe())
    with pytest.raises(DataError, match="no run folder"):
        Run.open(tmp_path)
    (tmp_path / "empty").mkdir()
    Run.create(tmp_path / "empty", Recipe()).close()


def test_another_process_may_not_write_the_same_run(tmp_path: Path) -> None:
    with Run.create(tmp_path, Recipe()):
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        code += "from pathlib import Path; from tests.test_run import Recipe; from limbeck.run import Run\n"
        code += f"Run.create(Path({str(tmp_path)!r}), Recipe())"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert BusyError.__name__ in done.stderr and "another process is writing" in done.stderr


def test_metrics_are_lines_and_events(tmp_path: Path) -> None:
    with Run.create(tmp_path, Recipe()) as run:
        assert run.metrics() == [] and run.flush() == 0
        run.log(0, **{"valid/nll": 2.0})
        run.log(1, **{"train/nll": 0.1 + 0.2, "seconds": 1.0, "valid/bad": float("nan"), "a": None})
        size = run.flush()
        assert size == run.metrics_file.stat().st_size
    assert run.metrics()[1] == {"step": 1, "train/nll": 0.1 + 0.2, "seconds": 1.0, "valid/bad": None, "a": None}
    timed = {"step": 1, "seconds": 1, "a_seconds": 2, "tokens_per_second": 3, "x": 4}
    assert same_but_time(timed) == {"step": 1, "x": 4}
    events = EventAccumulator(str(run.tensorboard)).Reload()
    assert events.Tags()["scalars"] == ["valid/nll", "train/nll", "seconds"]
    assert events.Scalars("valid/nll")[0].value == 2.0


def test_rewinding_cuts_lines_and_hides_events(tmp_path: Path) -> None:
    with Run.create(tmp_path, Recipe()) as run:
        run.log(1, x=1.0)
        size = run.flush()
        run.log(2, x=2.0)
    with Run.create(tmp_path, Recipe()) as run:
        run.rewind(size, 1)
        assert run.metrics() == [{"step": 1, "x": 1.0}]
        run.log(2, x=3.0)
    assert run.metrics() == [{"step": 1, "x": 1.0}, {"step": 2, "x": 3.0}]
    values = [(e.step, e.value) for e in EventAccumulator(str(run.tensorboard)).Reload().Scalars("x")]
    assert values == [(1, 1.0), (2, 3.0)]


def test_json_is_written_within_the_run(tmp_path: Path) -> None:
    with Run.create(tmp_path, Recipe()) as run:
        path = run.write_json("scores/valid.json", {"a": 1})
    assert path == run.scores / "valid.json" and json.loads(path.read_text()) == {"a": 1}


def test_provenance_tells_what_the_numbers_rest_on(tmp_path: Path) -> None:
    with Run.create(tmp_path, Recipe()) as run:
        first = run.provenance(seed=3, data={"train": "abc"})
        assert first["seed"] == 3 and first["data"] == {"train": "abc"} and first["resumed"] == []
        assert {"python", "limbeck", "torch", "numpy", "tokenizers"} <= first["versions"].keys()
        assert first["machine"]["cores"] >= 1 and first["machine"]["memory_bytes"] > 1 << 28
        assert first["machine"]["cpu"] and first["machine"]["threads"] >= 1
        second = run.provenance(seed=3, data={"train": "abc"})
        assert len(second["resumed"]) == 1 and second["started"] == first["started"]
        text = (run.path / "provenance.json").read_text()
        assert platform.node() not in text.replace(str(first["source"]["commit"]), "")
        assert f"/{getuser()}/" not in text and str(Path.home()) not in text
        with pytest.raises(DataError, match="seed 3, not 4"):
            run.provenance(seed=4, data={"train": "abc"})
        with pytest.raises(DataError, match="the train data changed"):
            run.provenance(seed=3, data={"train": "abd"})


def test_a_hub_model_that_moved_on_is_refused(tmp_path: Path) -> None:
    with Run.create(tmp_path, Recipe()) as run:
        assert run.provenance(seed=3, data={}, models={"owner/tiny": "a" * 40})["models"] == {"owner/tiny": "a" * 40}
        run.provenance(seed=3, data={}, models={"owner/tiny": "a" * 40})
        run.provenance(seed=3, data={})
        with pytest.raises(DataError, match=f"commit {'b' * 12} now.*begun with {'a' * 12}.*owner/tiny@{'a' * 40}"):
            run.provenance(seed=3, data={}, models={"owner/tiny": "b" * 40})


def test_the_commit_is_that_of_a_checkout_and_of_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    git("init", "-q")
    (tmp_path / "run.py").write_text("a = 1\n")
    monkeypatch.setattr(room, "__file__", str(tmp_path / "run.py"))
    assert room.source() == {"commit": None, "changed": None}  # it lies in a checkout, but is none of its files
    git("add", "run.py")
    git("commit", "-q", "-m", "x")
    assert room.source() == {"commit": git("rev-parse", "HEAD"), "changed": False}
    (tmp_path / "run.py").write_text("a = 2\n")
    assert room.source()["changed"] is True
    monkeypatch.setenv("PATH", str(tmp_path))
    assert room.source() == {"commit": None, "changed": None}


def test_a_machine_without_cpuinfo_still_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(OSError()))
    assert room.machine()["cpu"]


def test_a_package_that_is_not_there_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_PACKAGES", ("torch", "no-such-package"))
    assert room.versions().keys() == {"python", "torch"}


@pytest.mark.parametrize("text", ["a: [", "- 1", "\xff"])
def test_a_damaged_recipe_is_named(text: str, tmp_path: Path) -> None:
    Run.create(tmp_path, Recipe()).close()
    (tmp_path / "recipe.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"recipe\.yaml"):
        Run.open(tmp_path).recipe()


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_report_is_named(text: str, tmp_path: Path) -> None:
    with Run.create(tmp_path, Recipe()) as run:
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(DataError, match=r"report\.json"):
            run.report()


def test_no_torch_is_imported_for_a_run() -> None:
    code = "import sys, limbeck.run, limbeck.storage; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False).returncode == 0
