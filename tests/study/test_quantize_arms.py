from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from limbeck.jobs.recipe import Display
from limbeck.measure.cost import disk_bytes
from limbeck.study.study import Study
from tests.reference.small_model import saved

QUICK: dict[str, Any] = {
    "data": "toy:stories", "limit": 10, "measuring": {"generate": False},
}  # fmt: skip
SPEED = {"prompt_tokens": 2, "new_tokens": 2, "repeats": 2, "warm_up": 0}


def test_quantized_arms_stand_beside_what_is_evaluated_on_the_same_rows(tmp_path: Path) -> None:
    source = saved(tmp_path / "m", hidden_size=64)

    def quantize(form: str, **more: Any) -> dict[str, Any]:
        technique = {"kind": "rtn", "grid": {"format": form}}
        values = {"model": str(source), "technique": technique, "speed": SPEED, **more}
        return {"verb": "quantize", "once": True, "values": values}

    plan = {
        "title": "precision",
        "seeds": [0, 1],
        "common": QUICK,
        "arms": {
            "fp32": quantize("fp32"),
            "int4": quantize("int4", memory=True),
            "asked": {"verb": "evaluate", "values": {"model": "@int4", "probes": "off"}},
            "tuned": {
                "verb": "finetune",
                "values": {
                    "model": str(source), "test": "toy:stories", "techniques": [{"kind": "qat", "bits": 4}],
                    "batch_size": 4, "train": {"steps": 1}, "probes": "off",
                },
            },
        },
        "plots": [["nats per byte", "nats per token"]],
        "compare": [["int4", "fp32"], ["asked", "int4"]],
    }  # fmt: skip
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(plan))
    study = Study(plan=str(file), out=str(tmp_path / "out"))
    arms = study.run(Display.silent()).values["arms"]
    assert [len(arms[n]["runs"]) for n in ("fp32", "int4", "asked")] == [1, 1, 2], "rounding has no seed"
    text = (tmp_path / "out" / "study.md").read_text()
    first, second = text.split("**nats per token")[1:]
    assert all(f"| {name} |" in first for name in ("fp32", "int4", "asked")) and "| tuned |" in second
    # an evaluation of the folder that the arm left gives the arm's own figure and bytes
    by_arm = {n: arms[n]["runs"][0] for n in arms}
    nats = {n: by_arm[n]["metrics"]["nats per token"]["value"] for n in arms}
    assert nats["asked"] == nats["int4"] != nats["fp32"]
    size = disk_bytes(tmp_path / "out" / "int4" / "seed-0" / "model")
    assert by_arm["asked"]["cost"]["disk_bytes"] == by_arm["int4"]["cost"]["disk_bytes"] == size
    assert size < 0.35 * by_arm["fp32"]["cost"]["disk_bytes"]
    # memory, prefill speed and nearness stand in a table of their own, where they were measured
    head = next(line for line in first.splitlines() if "prefill tokens/s" in line)
    assert head == (
        "| arm | peak MB at load | peak MB in use | prefill tokens/s | time a token, of the original's | "
        "KL to the original, nats | same top token |"
    )
    rows = {line.split(" | ")[0][2:]: line.split(" | ") for line in first.split(head)[1].splitlines() if "|" in line}
    peak = by_arm["int4"]["cost"]["peak"]
    assert rows["int4"][1:3] == [f"{peak['load_bytes'] / 1e6:,.1f}", f"{peak['use_bytes'] / 1e6:,.1f}"]
    assert rows["asked"][1:3] == ["-", "-"] and rows["asked"][3] != "-" and rows["asked"][4] == "-"
    assert rows["int4"][5].startswith(f"{by_arm['int4']['agreement']['kl_nats']['value']:.4g} [")
    html = (tmp_path / "out" / "study.html").read_text()
    assert "peak MB at load" in html and "weights on disk" in html and "time a token" in html
    # read again, not repeated
    stamps = {f: f.stat().st_mtime_ns for f in (tmp_path / "out").glob("*/seed-*/report.json")}
    again = study.run(Display.silent())
    assert {f: f.stat().st_mtime_ns for f in stamps} == stamps and len(stamps) == 6
    assert (
        json.loads(json.dumps(again.values["comparisons"]))
        == json.loads((tmp_path / "out" / "study.json").read_text())["comparisons"]
    )
