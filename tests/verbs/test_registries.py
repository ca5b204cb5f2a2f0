"""A technique or a task takes a file and its line in a table: no verb, flag or check is edited for it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import limbeck
from limbeck.tasks.table import TASKS
from limbeck.techniques.table import TECHNIQUES
from tests.reference.small_model import saved

SOURCE = Path(limbeck.__file__).parent

TABLES = """
import importlib.util, sys
from typing import ClassVar, Literal

def with_line(name, old, new):
    spec = importlib.util.find_spec(name)
    source = open(spec.origin, encoding="utf-8").read()
    assert source.count(old) == 1
    made = importlib.util.module_from_spec(spec)
    made.Added = Added
    sys.modules[name] = made
    exec(compile(source.replace(old, new), spec.origin, "exec"), made.__dict__)
"""
"""Loads a table with one line more, before anything imports it."""

TECHNIQUE = (
    TABLES
    + """
from limbeck.techniques.quantized import Quantizer, deployed_spec_of, round_all

class Added(Quantizer):
    \"\"\"Round, as rtn does.\"\"\"

    name: ClassVar[str] = "added"
    kind: Literal["added"] = "added"
    strength: int = 1

    def apply(self, model, calibration=()):
        round_all(model, self, "none")
        return model

    def convert(self, model):
        return model, deployed_spec_of(model, self)

    def training_skeleton(self, model):
        return self.deployed_skeleton(model)

with_line("limbeck.techniques.table", "    RTN.name: RTN,", "    RTN.name: RTN,\\n    Added.name: Added,")
"""
)

TASK = (
    TABLES
    + """
from limbeck.tasks.text import Text

class Added(Text):
    \"\"\"Documents.\"\"\"

    name: ClassVar[str] = "added"
    kind: Literal["added"] = "added"

with_line("limbeck.tasks.table", "    QuestionAnswering.name: QuestionAnswering,",
          "    QuestionAnswering.name: QuestionAnswering,\\n    Added.name: Added,")
"""
)

COMMANDS = """
import contextlib, io, json
from limbeck import cli
from limbeck.command import verb
from limbeck.verbs.table import recipe

commands = json.loads(sys.argv[1])
kinds = {name: recipe(name) for name in {command[0] for command in commands}}
found = {n: {"summary": k.summary, "schema": k.model_json_schema()} for n, k in kinds.items()}
verb.schema = lambda: {"verbs": found}
told = []
for command in commands:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(command)
    told.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(told))
"""


def run(program: str, *commands: list[object]) -> list[tuple[int, str, str]]:
    """Run commands in one process in which the table has its line; exit code, stdout and stderr of each."""
    told = json.dumps([[str(part) for part in command] for command in commands])
    done = subprocess.run([sys.executable, "-c", program + COMMANDS, told], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [tuple(one) for one in json.loads(done.stdout)]


def test_a_new_post_training_quantizer_touches_no_verb(tmp_path: Path) -> None:
    model = saved(tmp_path / "m", hidden_size=64)
    (code, out, err), refused = run(
        TECHNIQUE,
        [
            "quantize", model, "--data", "toy:stories", "--limit", 4, "--technique", "added", "--added.bits", 8,
            "--added.strength", 3, "--no-generate", "--repeats", 2, "--warm-up", 0, "--speed.new-tokens", 2,
            "--prompt-tokens", 2, "--out", tmp_path / "run", "--json", "--quiet",
        ],
        ["finetune", "--model", model, "--data", "toy:stories", "--technique", "rtn,added"],
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    assert found["technique"]["kind"] == "added" and found["technique"]["strength"] == 3
    assert [spec["kind"] for spec in found["deployed_specs"]] == ["added"]
    assert refused[0] == 2 and "'added' cannot follow 'rtn'" in refused[2]


def test_a_technique_that_trains_is_none_of_quantize(tmp_path: Path) -> None:
    trains = TECHNIQUE.replace("    strength: int = 1", "    post_training: ClassVar[bool] = False")
    [(code, _, err)] = run(
        trains, ["quantize", "m", "--data", "toy:stories", "--technique", "added", "--out", tmp_path / "run"]
    )
    assert code == 2 and "--technique is one of " in err and "not 'added'" in err


def test_a_new_task_touches_no_verb(tmp_path: Path) -> None:
    text = tmp_path / "stories.txt"
    text.write_text("one two three four five six seven eight nine ten.\n" * 60, encoding="utf-8")
    recipe = {
        "corpora": {"own": {"data": str(text), "weight": 1}}, "shards": str(tmp_path / "shards"), "vocab_size": 270,
        "task": {"kind": "added"}, "context": 16, "tokens": 256, "batch_size": 2, "probes": "off",
        "architecture": {"preset": "toy", "layers": 1, "hidden_size": 16, "heads": 2, "kv_heads": 1, "context": 16},
        "out": str(tmp_path / "run"),
    }  # fmt: skip
    fits, other = tmp_path / "fits.yaml", tmp_path / "other.yaml"
    fits.write_text(json.dumps(recipe), encoding="utf-8")
    other.write_text(json.dumps({**recipe, "task": {"kind": "qa"}}), encoding="utf-8")
    (code, out, err), refused = run(
        TASK, ["pretrain", "--config", fits, "--dry-run", "--json", "--quiet"], ["pretrain", "--config", other]
    )
    assert code == 0, err
    assert json.loads(out)["expected"]["steps"] == 8
    assert refused[0] == 2 and "corpora are for task 'text', 'added'" in refused[2]


def test_no_verb_asks_which_task_or_technique_it_has() -> None:
    """Only the export of a PEFT adapter does: such an adapter is a LoRA."""
    concrete = {kind.__name__ for kind in (*TASKS.values(), *TECHNIQUES.values())}
    asked = [
        f"{file.stem}:{node.lineno}"
        for file in (f for room in ("verbs", "jobs", "command") for f in sorted((SOURCE / room).rglob("*.py")))
        if file.parent.name != "export"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance"
        if {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)} & concrete
    ]
    assert asked == []
