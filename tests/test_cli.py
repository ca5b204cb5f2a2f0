from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from limbeck import __version__, cli
from limbeck.command import verb as verbs
from limbeck.command.flags import flags_of
from limbeck.schema import PAGES, SCHEMA, add_definition, generate, index, main, page
from limbeck.verbs import table


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the command line with the toy recipe as its one verb."""
    monkeypatch.setattr(table, "RECIPES", {"toy": "tests.reference.toy_recipe:Toy"})
    monkeypatch.setattr("limbeck.schema.RECIPES", table.RECIPES)
    schema = verbs.with_definitions(generate())
    monkeypatch.setattr(verbs, "schema", lambda: schema)
    monkeypatch.setattr(cli, "_hush", lambda: None)  # warnings stay errors in this process

    def call(*argv: str) -> Outcome:
        code = cli.main(argv)
        got = capsys.readouterr()
        return Outcome(code, got.out, got.err)

    return call


Run = Callable[..., Outcome]


def test_people_read_stderr_and_generated_text_goes_to_stdout(run: Run) -> None:
    got = run("toy", "a", "b")
    assert got.code == 0
    assert got.out == "a library says hello\nstreamed\n"
    assert "for people" in got.err and "words  2" in got.err


def test_json_is_exactly_one_object_on_stdout(run: Run) -> None:
    got = run("toy", "a", "--json")
    assert json.loads(got.out) == {"words": ["a"], "nan": None}
    assert got.out.count("\n") == 1
    assert "a library says hello" in got.err and "streamed" in got.err


def test_quiet_says_nothing_to_people(run: Run) -> None:
    got = run("toy", "--quiet")
    assert "for people" not in got.err and "words" not in got.err
    assert "streamed" in got.out
    both = run("toy", "--quiet", "--json")
    assert both.err == "a library says hello\n" and json.loads(both.out)["words"] == []


def test_print_config_is_the_whole_recipe_and_comes_back(run: Run, tmp_path: Path) -> None:
    flags = ["--steps", "7", "--technique", "lora", "--lora.rank", "3", "--rate", "1e-4", "--stop", "a,b"]
    first = run("toy", "word", *flags, "--print-config")
    assert first.code == 0 and first.err == ""
    values = yaml.safe_load(first.out)
    assert values["train"]["steps"] == 7 and values["techniques"][0]["rank"] == 3 and values["stop"] == ["a,b"]
    file = tmp_path / "toy.yaml"
    file.write_text(first.out)
    assert run("toy", "--config", str(file), "--print-config").out == first.out
    as_json = run("toy", "--config", str(file), "--print-config", "--json")
    assert json.loads(as_json.out)["train"] == values["train"]


def test_flags_override_the_file(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text("train: {steps: 5, packing: true}\nrate: 1e-3\n")
    values = yaml.safe_load(run("toy", "--config", str(file), "--train.steps", "6", "--print-config").out)
    assert values["train"]["steps"] == 6 and values["train"]["packing"] is True and values["rate"] == 0.001


@pytest.mark.parametrize("spelling", ["--learning-rate", "--learning_rate", "--train.optim.learning-rate"])
def test_hyphens_and_underscores_are_one(run: Run, spelling: str) -> None:
    values = yaml.safe_load(run("toy", spelling, "0.5", "--print-config").out)
    assert values["train"]["optim"]["learning_rate"] == 0.5


@pytest.mark.parametrize(
    ("flag", "value"), [("--packing", True), ("--no-packing", False), ("--no-train.packing", False)]
)
def test_switches_have_two_sides(run: Run, flag: str, value: bool) -> None:
    assert yaml.safe_load(run("toy", flag, "--print-config").out)["train"]["packing"] is value


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["toi"], "there is no verb 'toi'; did you mean 'toy'?"),
        (["toy", "--stepz", "1"], "'toy' has no option --stepz; did you mean '--steps'?"),
        (["--versoin"], "there is no option --versoin; did you mean '--version'?"),
        (["toy", "--steps"], "--steps"),
        (["toy", "--steps", "x"], "--steps takes a whole number or none, not 'x'"),
        (["toy", "--steps", "0"], "'train.steps' in the flags of 'toy': must be at least 1"),
        (["toy", "--config", "absent.yaml"], "config file absent.yaml does not exist"),
        (["toy", "--lora.rank", "2"], "--lora.rank needs --technique lora"),
        (["toy", "--fail", "data"], "row 3 of x.csv has no column 'text'"),
        ([*"--quiet toy".split()], "there is no option --quiet"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(run: Run, argv: list[str], sentence: str) -> None:
    got = run(*argv)
    assert got.code == 2 and got.out == ""
    assert got.err.startswith("limbeck: error: ") and sentence in got.err
    assert got.err.count("\n") == 1


def test_an_unknown_key_in_the_file_is_named_with_the_file(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text("train: {stepz: 5}\n")
    assert run("toy", "--config", str(file)).err == (
        f"limbeck: error: unknown key 'train.stepz' in {file}; did you mean 'steps'?\n"
    )


@pytest.mark.parametrize(
    ("fail", "code", "sentence"),
    [
        ("ctrl-c", 130, "interrupted"),
        ("saved", 130, "stopped at step 3; the checkpoint is saved"),
        ("bug", 1, "unexpected ZeroDivisionError: by zero (LIMBECK_TRACEBACK=1 shows where)"),
        ("memory", 1, "out of memory"),
        ("torch", 1, "out of memory"),
        ("cuda", 1, "out of memory"),
        ("disk", 1, "the disk is full (writing x.bin)"),
        ("quota", 1, "the disk is full: free"),
        ("rights", 1, "no permission to open y.bin"),
    ],
)
def test_failures(run: Run, fail: str, code: int, sentence: str) -> None:
    got = run("toy", "--fail", fail, "--json")
    assert got.code == code and sentence in got.err
    assert got.err.strip().count("\n") == 0  # click ends the line of a ^C
    assert sentence in json.loads(got.out)["error"] and json.loads(got.out)["exit_code"] == code


def test_a_closed_pipe_is_quiet(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten = []
    monkeypatch.setattr(cli, "_forget_stdout", lambda: forgotten.append(True))
    got = run("toy", "--fail", "pipe")
    assert (got.code, got.err, forgotten) == (1, "", [True])


def test_json_after_the_double_dash_is_no_option(run: Run) -> None:
    assert run("toy", "--fail", "data", "--", "--json").out == ""


def test_help_lists_verbs_and_flags(run: Run) -> None:
    assert "toy  shows every shape" in run("--help").out
    assert run().out == run("--help").out
    text = run("toy", "--help-all").out
    for part in (
        "Shows 'every' shape.",
        "WORDS",
        "--steps INT",
        "technique lora:",
        "--lora.rank INT",
        "--print-config",
    ):
        assert part in text
    assert "not part of the help" not in text
    assert run("--version").out == f"limbeck {__version__}\n"


# The real verbs, in processes of their own.


def limbeck(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "limbeck", *argv], capture_output=True, text=True, timeout=120)


def test_help_imports_neither_torch_nor_pydantic() -> None:
    program = """
import sys
from limbeck.cli import main
from limbeck.command.verb import schema
for argv in (["--help"], *([v, "--help"] for v in schema()["verbs"])):
    assert main(argv) == 0, argv
heavy = sorted({"torch", "pydantic", "yaml", "numpy", "rich", "transformers"} & set(sys.modules))
sys.exit(f"imported: {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_module_runs_as_the_command_does() -> None:
    done = limbeck("--version")
    assert (done.returncode, done.stdout) == (0, f"limbeck {__version__}\n")
    done = limbeck("compair", "--json")
    assert done.returncode == 2 and "did you mean 'compare'?" in json.loads(done.stdout)["error"]


@pytest.mark.parametrize(
    ("argv", "code", "told"),
    [(["info", "--help"], 1, ""), (["--version"], 1, ""), (["compair", "--json"], 2, "there is no verb 'compair'")],
)
def test_a_reader_that_leaves_is_not_told(argv: list[str], code: int, told: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "limbeck", *argv],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    os.close(writing)
    assert done.returncode == code and told in done.stderr
    assert "BrokenPipe" not in done.stderr and "Exception" not in done.stderr and bool(done.stderr) == bool(told)


def test_libraries_are_hushed_unless_warnings_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIMBECK_TRACEBACK", raising=False)
    monkeypatch.setattr(sys, "warnoptions", [])
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    with warnings.catch_warnings():
        cli._hush()
        warnings.warn("chatter", UserWarning, stacklevel=1)  # an error in tests, were it not for the hush
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info" and os.environ["TOKENIZERS_PARALLELISM"] == "false"
    monkeypatch.setattr(sys, "warnoptions", ["error"])
    with warnings.catch_warnings():
        cli._hush()
        with pytest.raises(UserWarning):
            warnings.warn("wanted", UserWarning, stacklevel=1)


def test_the_committed_schema_is_fresh() -> None:
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == generate(), "run `make schema`"


def test_the_committed_pages_are_fresh() -> None:
    found = generate()
    verbs, shared = found["verbs"], found["$defs"]
    wanted = {"README.md": index(verbs)} | {f"{verb}.md": page(verb, about, shared) for verb, about in verbs.items()}
    assert {p.name: p.read_text(encoding="utf-8") for p in PAGES.glob("*.md")} == wanted, "run `make schema`"


def test_the_committed_schema_holds_each_definition_once() -> None:
    held = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert not any("$defs" in about["schema"] for about in held["verbs"].values())
    for verb, about in verbs.schema()["verbs"].items():
        whole = table.recipe(verb).model_json_schema()
        assert set(whole.get("$defs", {})) <= set(held["$defs"])
        assert flags_of(about["schema"]) == flags_of(whole)


def test_two_configs_of_one_name_are_no_shared_definition() -> None:
    shared = {"Grid": {"type": "object"}}
    add_definition(shared, "Grid", {"type": "object"})
    with pytest.raises(ValueError, match="two configs are called 'Grid'"):
        add_definition(shared, "Grid", {"type": "string"})


def test_make_schema_writes_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("limbeck.schema.SCHEMA", tmp_path / "schema.json")
    monkeypatch.setattr("limbeck.schema.PAGES", tmp_path / "verbs")
    (tmp_path / "verbs").mkdir()
    (tmp_path / "verbs" / "gone.md").write_text("a verb that is no more")
    main()
    assert (tmp_path / "schema.json").read_text(encoding="utf-8") == SCHEMA.read_text(encoding="utf-8")
    assert sorted(p.stem for p in (tmp_path / "verbs").iterdir()) == sorted(["README", *table.RECIPES])


@pytest.mark.parametrize("verb", list(table.RECIPES))
def test_every_verb_is_well_formed(verb: str) -> None:
    kind = table.recipe(verb)
    assert kind.verb == verb
    assert kind.summary and kind.summary[0].islower() and not kind.summary.endswith(".")
    flags = flags_of(kind.model_json_schema())
    spelled = [s for f in flags for s in f.spellings]
    spelled += [f"--no-{s[2:]}" for f in flags if f.form == "switch" for s in f.spellings]
    spelled += ["--config", "--print-config", "--json", "--quiet", "--help", "--help-all", "--help-technique"]
    assert len(spelled) == len(set(spelled)), "two flags share a spelling"
    assert [f.name for f in flags if not f.text and f.form != "union"] == [], "flags without a description"


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (("evaluate", "a", "b"), "'b' is one word too many: 'evaluate' takes MODEL: give each value its flag"),
        (("finetune", "gpt2"), "'gpt2' is one word too many: 'finetune' takes no argument: give each value its flag, "
                               "such as --model"),
        (("demo", "now"), "'now' is one word too many: 'demo' takes no argument"),
    ],
)  # fmt: skip
def test_a_word_too_many_is_told_with_what_to_write(
    argv: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 2
    assert sentence in capsys.readouterr().err
