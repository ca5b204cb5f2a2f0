"""The pages that people read: links that lead somewhere, commands that exist, a README that is short and runs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import limbeck
from limbeck.schema import generate
from limbeck.verbs.table import RECIPES
from tests.reference.tiny_runs import ARCHITECTURE, pretrained

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?:^|[`$] ?)limbeck ([a-z][a-z-]*)", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def broken_links(page: Path) -> list[str]:
    """Return the relative links of a page that lead to no file, or to no heading of one."""
    found = []
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_relative_link_resolves(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `two`\n[a](page.md#one-two) [b](gone.md) [c](#three) [d](https://x.y/z)\n```\n[e](no)\n```\n")
    assert broken_links(page) == ["gone.md", "#three"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_verb_that_is_named_exists(page: Path) -> None:
    assert set(COMMAND.findall(page.read_text(encoding="utf-8"))) <= set(RECIPES)


def test_a_verb_that_is_no_more_is_found() -> None:
    assert COMMAND.findall("`limbeck fit x`\n    $ limbeck study\nlimbeck info") == ["fit", "study", "info"]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 700


def test_the_index_names_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    links = LINK.findall(index.read_text(encoding="utf-8"))
    named = {(index.parent / link.partition("#")[0]).resolve() for link in links}
    generated = {ROOT / "docs" / "verbs" / f"{verb}.md" for verb in generate()["verbs"]}
    results = ROOT / "docs" / "results"
    parts = {*(results / "performance").glob("*.md"), *(results / "raw").glob("*.md")}  # remarks, and tables of a page
    assert set(PAGES[2:]) - generated - parts - {index} - named == set()


def test_the_glossary_has_at_most_sixty_terms_in_order() -> None:
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    terms = [line.split(" | ")[0].strip("| `").lower() for line in page.splitlines() if line.startswith("| ")][1:]
    assert len(terms) == len(set(terms)) <= 60
    assert terms == sorted(terms)


RESULTS = sorted((ROOT / "docs" / "results").glob("*.md"))


@pytest.mark.parametrize("page", RESULTS, ids=lambda p: p.stem)
def test_a_results_page_opens_with_question_table_and_verdict(page: Path) -> None:
    """One table, before the verdict, and at most 600 words; more goes to docs/results/raw (scripts/results_page.py)."""
    text = page.read_text(encoding="utf-8")
    question, verdict = text.index("**Question.**"), text.index("**Verdict.**")
    tables = [m.start() for m in re.finditer(r"^\|[ :-]*-", FENCE.sub(lambda m: " " * len(m[0]), text), re.MULTILINE)]
    assert text.startswith("# ") and question < tables[0] < verdict
    assert [t for t in tables if t < verdict] == tables == tables[:1]
    script = loaded(ROOT / "scripts" / "results_page.py")
    assert script.words(text) <= script.WORDS == 600


def test_words_are_those_of_prose_and_cells() -> None:
    words = loaded(ROOT / "scripts" / "results_page.py").words
    text = "# One two\n\n| three | 0.1 [0.0, 0.2] |\n|---|---|\n\n[four](a.md) ![no](no.png) - `five`\n"
    assert words(text + "```sh\nno no\n```\n<!-- no -->") == words(text) == 8


def loaded(file: Path) -> ModuleType:
    """Return the module of a file that is in no package."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore:this processor has no bf16 products")
def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Literally, with a tiny model in a folder called gpt2."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert set(re.findall(r"limbeck\.([A-Za-z]+)\(", code)) <= set(limbeck.__all__)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", shown.append)
    pretrained(tmp_path / "gpt2", architecture={**ARCHITECTURE, "layers": 7})
    stories = [f"Once upon a time there was a hen called {i}." for i in range(40)]
    for name in ("stories.txt", "test.txt"):
        Path(name).write_text("\n<|endoftext|>\n".join(stories))
    exec(compile(code, "README.md", "exec"), {})
    assert len(shown) == 1 and shown[0].endswith("report.html")
    assert Path("runs/int8/report.html").exists() and limbeck.load("runs/student").bundle.model.config.layers == 6
