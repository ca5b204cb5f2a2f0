"""The ablations of the architecture, as ``studies/ablations.yaml`` has them, small enough for a test."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck import cli
from limbeck.config import merge

STUDY = Path(__file__).parents[2] / "studies" / "ablations.yaml"
SHAPE = {"preset": "toy", "layers": 2, "hidden_size": 32, "heads": 4, "context": 64, "parameters": 40_000}


@pytest.fixture(scope="module")
def small() -> dict[str, Any]:
    plan = yaml.safe_load(STUDY.read_text())
    corpora = {"stories": {"data": "toy:stories", "weight": 0.7, "valid": "toy:verse", "valid_limit": 8}}
    corpora["verse"] = {"data": "toy:verse", "weight": 0.3}
    plan["common"] |= {
        "dtype": "fp32", "corpora": corpora, "vocab_size": 300, "context": 64, "batch_size": 4, "tokens": 2_048,
    }  # fmt: skip
    plan["seeds"] = [0, 1]
    for arm in plan["arms"].values():
        own = arm["values"]["architecture"]
        arm["values"]["architecture"] = merge(own, SHAPE)
    return plan


ARMS = ("modern", "learned", "layernorm", "gelu", "grouped", "untied")


def rows_of(table: str) -> dict[str, dict[str, str]]:
    """The cells of the study's first table by arm's label and column."""
    header, _, *lines = [line for line in table.splitlines() if line.startswith("|")][: 2 + len(ARMS)]
    names, *cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in (header, *lines))
    return {row[0]: dict(zip(names, row, strict=True)) for row in cells}


def test_parts_are_worth_nats_at_equal_parameters(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # the shards' folder is named relative
    monkeypatch.setattr(cli, "_hush", lambda: None)  # warnings stay errors in this process
    Path("ablations.yaml").write_text(yaml.safe_dump(small, sort_keys=False))
    assert cli.main(["study", "ablations.yaml", "--out", "out", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert tuple(found["arms"]) == ARMS
    for arm in found["arms"].values():
        assert [r["training"]["real_tokens"] for r in arm["runs"]] == [2_048] * 2
        assert [r["training"]["steps"] for r in arm["runs"]] == [8] * 2
        assert all(abs(r["cost"]["parameters"] / 40_000 - 1) <= 0.01 for r in arm["runs"])
    nats = {
        name: [run["metrics"]["nats per token"]["value"] for run in arm["runs"]] for name, arm in found["arms"].items()
    }
    assert len({seeds[0] for seeds in nats.values()}) == 6  # no variant is another one
    assert len(found["comparisons"]) == 5
    for one in found["comparisons"]:
        assert one["second"] == "modern" and one["seeds"] == [2, 2]
        assert one["low"] < one["difference"] < one["high"]
        expected = sum(b - a for a, b in zip(nats["modern"], nats[one["first"]], strict=True)) / 2
        assert one["difference"] == pytest.approx(expected, abs=1e-6)
    rows = rows_of(Path("out/study.md").read_text())
    labels = [arm.get("label", name) for name, arm in small["arms"].items()]
    assert list(rows) == labels
    for label, row in rows.items():
        assert row["seeds"] == "2" and abs(int(row["parameters"].replace(",", "")) / 40_000 - 1) <= 0.01
        change = row["change against " + labels[0]]
        told = re.fullmatch(r"([+-]\d+\.\d+) \[(-?\d+\.\d+), (-?\d+\.\d+)\]", change)
        assert change == "reference" if label == labels[0] else told is not None
        if told is not None:
            one = next(c for c, name in zip(found["comparisons"], labels[1:], strict=True) if name == label)
            values = (one["difference"], one["low"], one["high"])
            assert [float(x) for x in told.groups()] == pytest.approx(values, abs=0.01)


def test_an_arm_is_the_modern_one_but_for_its_part() -> None:
    """Of the study as it is shipped: one key an arm, all else equal, all of one size."""
    arms = {k: v["values"]["architecture"] for k, v in yaml.safe_load(STUDY.read_text())["arms"].items()}
    modern = arms.pop("modern")
    assert {a: {k for k in one if one[k] != modern.get(k)} for a, one in arms.items()} == {
        "learned": {"positions"}, "layernorm": {"norm"}, "gelu": {"gated", "activation"}, "grouped": {"kv_heads"},
        "untied": {"tied"},
    }  # fmt: skip
    assert all(one["parameters"] == modern["parameters"] for one in arms.values())
