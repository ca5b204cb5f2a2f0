"""The benchmarks' harness, on arms of its own and on toy shapes; nothing here is timed."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
OF_ITS_OWN_KIND = (
    "decode_speed",
    "decode_speculative",
    "input_rounding",
    "products",
    "rounding_methods",
    "serve",
    "busy_cores",
    "smaller_is_faster",
    "sparse_attention",
    "sparse_quality",
)  # no arms against a peer
CLAIMS = sorted(f.stem for f in FOLDER.glob("*.py") if f.stem not in OF_ITS_OWN_KIND)

TOY = """
    from harness.claim import Arm, Bar, Claim
    from harness.turns import main

    def plain(start):
        def work(turn):
            turn.imports("json")
            loss = start
            while True:
                turn(10, {"nll": loss})
                loss += 1
        return work

    def trained(start):
        def work(turn):
            turn.imports("torch")
            import torch
            weight = torch.nn.Parameter(torch.zeros(1000))
            optimizer = torch.optim.AdamW([weight])
            loss = start
            while True:
                weight.grad = torch.ones(1000)
                optimizer.step()
                turn(10, {"nll": loss})
                loss += 1
        return work

    def claim(quick):
        return Claim(
            name="toy", title="Toy", setting="nothing",
            arms=(
                Arm("peer", KIND(1.0), "system"), Arm("ours", KIND(START)),
                Arm("absent", plain(1.0), packages=("no_such_package",)),
            ),
            bars=(Bar("ours", "peer", "speed", 1.0), Bar("ours", "absent", "peak", 0.5)),
            rounds=3, steps=2, warmup=1, equal={"nll": 1e-3}, apart=APART,
        )

    if __name__ == "__main__":
        main(__file__, claim, lambda quick: [])
"""


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)


def run(folder: Path, start: Any, kind: str, apart: bool, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run the toy claim with arms of ``kind``, ours starting from the loss ``start``."""
    file = folder / "toy.py"
    text = textwrap.dedent(TOY)
    for name, value in (("START", start), ("KIND", kind), ("APART", apart)):
        text = text.replace(name, str(value))
    file.write_text(f"import sys\nsys.path.insert(0, {str(FOLDER)!r})\n" + text)
    command = [sys.executable, str(file), "--json", str(folder / "out" / "toy.json"), *flags]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(("kind", "apart"), [("trained", False), ("plain", True)])
def test_arms_take_their_turns_and_their_memory_is_told(tmp_path: Path, kind: str, apart: bool) -> None:
    done = run(tmp_path, 1.0, kind, apart)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "toy.json").read_text())
    assert list(result["arms"]) == ["peer", "ours"]
    assert result["left_out"] == {"absent": "needs no_such_package"}
    for arm in result["arms"].values():
        assert len(arm["rates"]) == 3
        assert arm["first"] == {"nll": 1.0}
        assert arm["last"] == {"nll": 7.0}  # one step of warm-up, three turns of two
        # weights, two moments, the step's count
        assert arm["state_bytes"] == (12_000 + 4 if kind == "trained" else 0)
        above = arm["peak_bytes"] - arm["import_bytes"] - arm["state_bytes"]
        assert arm["above_state_bytes"] == above
    ratios = [a / b for a, b in zip(*(result["arms"][n]["rates"] for n in ("ours", "peer")), strict=True)]
    (bar,) = result["bars"]  # the one against the absent arm is left out with it
    assert bar["value"] == sorted(ratios)[1]
    assert (bar["low"], bar["high"], bar["met"]) == (min(ratios), max(ratios), sorted(ratios)[1] >= 1.0)
    assert "| ours | keep |" in done.stdout and "left out: needs no_such_package" in done.stdout


def test_arms_that_compute_different_things_are_not_compared(tmp_path: Path) -> None:
    done = run(tmp_path, 1.01, "plain", False)
    assert done.returncode == 1
    assert "the first nll of 'ours' is 1.01, of 'peer' 1.0" in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_arm_that_fails_is_named_with_its_words(tmp_path: Path) -> None:
    done = run(tmp_path, "no_such_name", "plain", False)
    assert done.returncode == 1
    assert "NameError" in done.stderr


def test_a_profile_is_told_by_kinds_of_operations(tmp_path: Path) -> None:
    done = run(tmp_path, 1.0, "trained", False, "--profile", "--rounds", "1", "--arms", "ours")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "toy.json").read_text())
    assert list(result["arms"]) == ["ours"]
    assert "optimizer" in result["arms"]["ours"]["profile_ms_per_step"]


@pytest.mark.parametrize("name", CLAIMS)
@pytest.mark.parametrize("quick", [True, False])
def test_every_claim_is_whole(name: str, quick: bool) -> None:
    module = importlib.import_module(name)
    claim = module.claim(quick)
    assert claim.name == name
    arms = [a.name for a in claim.arms]
    assert len(set(arms)) == len(arms)
    for bar in claim.bars:
        assert {bar.arm, bar.against} <= set(arms)
    if claim.axis:
        assert all(arm.rpartition(", ")[2].isdigit() for arm in arms)
    module.shapes(quick)


@pytest.mark.slow
def test_full_fine_tuning_computes_the_same_on_both_sides(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "full_finetuning.py"), "--quick", "--rounds", "1"]
    kept = ["transformers", "Limbeck"]
    command += ["--arms", ";".join(kept), "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    arms = json.loads((tmp_path / "out.json").read_text())["arms"]
    assert list(arms) == kept
    first = [arm["first"]["nll"] for arm in arms.values()]
    assert max(first) - min(first) < 2e-3 * min(first)
    assert all(arm["last"]["nll"] < arm["first"]["nll"] for arm in arms.values())


def result(**changes: Any) -> dict[str, Any]:
    """What a measurement leaves, in small."""
    sizes = ("peak_bytes", "import_bytes", "state_bytes", "above_state_bytes")
    arm = {"remark": "as it comes", "allocator": "keep", "rates": [10.0, 30.0, 20.0], **dict.fromkeys(sizes, 2_000_000)}
    return {
        "name": "growth_toy", "title": "Growth", "setting": "toy shapes", "unit": "tokens/s", "axis": "", "rounds": 3,
        "steps": 2, "seconds": 1.0, "left_out": {}, "arms": {"A, 128": arm, "A, 4096": arm},
        "stamp": {
            "command": "python benchmarks/growth_toy.py", "commit": "abc", "cpu": "a processor", "cores": 2,
            "threads": 2, "memory_bytes": 2**34, "versions": {"torch": "2"}, "python": "3", "load": [0.5, 0.4, 0.3],
        },
        "bars": [
            {
                "arm": "A, 128", "against": "A, 4096", "quantity": "speed", "bound": 2.0, "at_least": True,
                "value": 1.0, "low": 0.5, "high": 1.5, "met": False,
            }
        ],
    } | changes  # fmt: skip


def test_the_page_tells_bars_machines_and_remarks(tmp_path: Path) -> None:
    from harness.page import main

    folder = tmp_path / "performance"
    folder.mkdir()
    (folder / "growth_toy.json").write_text(json.dumps(result(axis="tokens")))
    (folder / "full_finetuning.json").write_text(json.dumps(result(name="full_finetuning", title="Full")))
    (folder / "decode_speed.json").write_text("{}")  # of another kind
    (folder / "full_finetuning.md").write_text("Missed since the sun shone.\n")
    main(folder, tmp_path / "performance.md")
    front = (tmp_path / "performance.md").read_text()
    assert "| Full | 0 of 1 | *speed 1.00 (2)* |" in front and "0 of 2 bars are met; missed are bars of speed." in front
    assert "on a processor, 2 cores; commits abc." in front and front.index("**Question.**") < front.index("| Full")
    page = (tmp_path / "raw" / "performance.md").read_text()
    assert "| Full | speed, A, 128 | A, 4096 | 1.00 | at least 2 | **missed** |" in page
    assert "| A, 128 | keep | 20 (10 to 30) | 2 | 2 |" in page
    assert "| speed, A, 128 | A, 4096 | 1.00 (0.50 to 1.50) | at least 2 | **missed** |" in page
    assert "Commit abc; a processor, 2 cores, 2 threads, 16 GiB; torch 2" in page
    assert page.index("## Full") < page.index("Missed since the sun shone.") < page.index("## Growth")
    assert "![Growth: tokens/s and peak memory](../performance/growth_toy.svg)" in page
    assert ElementTree.parse(folder / "growth_toy.svg").getroot().tag.endswith("svg")


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_ITS_OWN_KIND)
def test_benchmarks_without_a_peer_run_and_write_their_figures(name: str, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--quick", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(file.read_text())
    assert told["stamp"]["command"] == f"python benchmarks/{name}.py --quick" and len(told) > 1 and done.stdout


def test_a_plot_places_its_points_by_the_logarithm() -> None:
    from harness.svg import Panel, draw

    tree = ElementTree.fromstring(draw([Panel("a < b", "tokens", {"one": [(128, 0), (256, 5), (512, 10)]})]))
    circles = [c for c in tree.iter() if c.tag.endswith("circle")]
    x = [float(c.get("cx", "nan")) for c in circles]
    y = [float(c.get("cy", "nan")) for c in circles]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.11)
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.11)
    assert any(t.text == "a < b" for t in tree.iter())
