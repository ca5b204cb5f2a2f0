"""The static site: links led from the repository's paths to the site's, a strict build, pages opened in Chromium."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import limbeck

ROOT = Path(__file__).parents[1]


def part(name: str) -> ModuleType:
    """Return a module of scripts/site."""
    pytest.importorskip("mkdocstrings", reason="pip install '.[docs]'")
    spec = importlib.util.spec_from_file_location(f"site_{name}", ROOT / "scripts" / "site" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("link", "source", "page", "moved"),
    [
        ("docs/quickstart.md#six", "README.md", "index.md", "quickstart.md#six"),
        ("../../README.md", "docs/results/claims.md", "results/claims.md", "../index.md"),
        ("../CONTRIBUTING.md", "docs/README.md", "pages.md", "project/contributing.md"),
        ("../../studies/fit.yaml", "docs/guides/laptop.md", "guides/laptop.md", "../project/studies.md#fit"),
        ("compare.md", "docs/guides/laptop.md", "guides/laptop.md", "compare.md"),
        ("#here", "docs/glossary.md", "glossary.md", "#here"),
        ("https://x.y/z", "README.md", "index.md", "https://x.y/z"),
    ],
)
def test_a_link_leads_to_the_page_of_the_site(link: str, source: str, page: str, moved: str) -> None:
    assert part("hooks").moved(link, source, page) == moved


def test_examples_become_a_section() -> None:
    text = "Return one.\n\nMore.\n\n>>> a\n1\n>>> b\n\n>>> c"
    shown = "Return one.\n\nMore.\n\nExamples:\n    >>> a\n    1\n    >>> b\n\nExamples:\n    >>> c"
    assert part("examples").titled(text) == shown
    assert part("examples").titled("Return one.") == "Return one."


def test_the_reference_has_every_public_name() -> None:
    pages = "\n".join(part("hooks").reference().values())
    assert [name for name in limbeck.__all__ if f"heading: limbeck.{name}\n" not in pages] == []
    assert "| `rank` | `8` |" in pages


def test_missing_files_and_anchors_are_found(tmp_path: Path) -> None:
    page, other = tmp_path / "a.html", tmp_path / "b.html"
    other.write_text("")
    links = {page: [f"{other.as_uri()}#one", f"{other.as_uri()}#two", (tmp_path / "c.html").as_uri(), "https://x.y/z"]}
    found = list(part("check").broken(tmp_path, links, {page: set(), other: {"one"}}))
    assert found == [
        "a.html: leads to b.html#two, which is missing",
        f"a.html: leads to {tmp_path / 'c.html'}, which is missing",
    ]


def browser() -> bool:
    """Return whether Chromium is installed."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    return any(name and shutil.which(name) for name in names)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built in strict mode: a warning, such as a broken link, fails it."""
    part("hooks")
    target = tmp_path_factory.mktemp("site") / "site"
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(target)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.mark.slow
def test_the_site_has_every_page_and_loads_nothing_from_elsewhere(site: Path) -> None:
    named = (f.relative_to(ROOT / "docs") for f in (ROOT / "docs").rglob("*.md") if f.name != "README.md")
    more = ("index", "pages", "project/contributing", "reference/functions")
    pages = {f.with_suffix(".html") for f in named} | {Path(f"{name}.html") for name in more}
    assert [str(p) for p in sorted(pages) if not (site / p).is_file()] == []
    html = [f.read_text(encoding="utf-8") for f in site.rglob("*.html")]
    assert not any(f' {word}="http' in text for text in html for word in ("src", 'rel="stylesheet" href'))
    assert "limbeck.finetune" in (site / "reference" / "functions.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_pages_fit_their_windows_and_log_no_error(site: Path) -> None:
    check = part("check")
    if not browser():
        pytest.skip("no Chromium: Debian's package is called chromium")
    names = ("index", "quickstart", "results/precision", "reference/functions", "reference/techniques", "verbs/distill")
    assert list(check.wrong(site, [site / f"{name}.html" for name in names])) == []


@pytest.mark.slow
def test_a_page_that_is_too_wide_or_asks_the_network_is_found(site: Path) -> None:
    check = part("check")
    if not browser():
        pytest.skip("no Chromium: Debian's package is called chromium")
    page = site / "bad.html"
    page.write_text(
        '<div style="width:900px">x</div><script src="http://127.0.0.1:9/x.js"></script><script>nothing()</script>'
    )
    found = "\n".join(check.wrong(site, [page]))
    page.unlink()
    assert "bad.html at 390: 5" in found and "pixels too wide" in found and "1440: 5" not in found
    assert "asks for http://127.0.0.1:9/x.js" in found and "nothing is not defined" in found
