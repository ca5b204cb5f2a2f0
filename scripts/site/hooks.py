"""Hooks of mkdocs: pages from outside of docs/, the reference of the Python API, and the navigation of docs/README.md.

Pages stay written for a code host: a link to ``../CONTRIBUTING.md`` or ``../studies/NAME.yaml`` is right there, and is
changed here into one to the page that the site has in its place.
"""

from __future__ import annotations

import inspect
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import limbeck
from limbeck.techniques.table import TECHNIQUES
from limbeck.techniques.technique import Technique

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
PLACES = {
    "README.md": "index.md",
    "docs/README.md": "pages.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "SECURITY.md": "project/security.md",
    "LICENSE": "project/license.md",
    "studies": "project/studies.md",
    "docs": "pages.md",
}
"""Path in the repository -> page of the site, where it is not the same path below docs/."""
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is written from sources outside of docs/."""
    files.remove(files.src_uris["README.md"])
    sources = {place: ROOT / name for name, place in PLACES.items() if (ROOT / name).is_file()}
    pages = {place: file.read_text(encoding="utf-8") for place, file in sources.items()}
    pages["project/license.md"] = f"# License\n\n```\n{pages['project/license.md'].strip()}\n```\n"
    pages["project/studies.md"] = studies()
    pages |= {f"reference/{name}.md": text for name, text in reference().items()}
    pages["assets/iframe-worker.js"] = (HERE / "iframe-worker.js").read_text(encoding="utf-8")
    pages["assets/site.css"] = (HERE / "site.css").read_text(encoding="utf-8")
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    config.nav = navigation()
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead the links of a page to the pages of the site."""
    uri = page.file.src_uri
    source = next((name for name, place in PLACES.items() if place == uri and (ROOT / name).is_file()), f"docs/{uri}")
    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(lambda m: m[1] + moved(m[2], source, uri) + m[3], part) for part in parts[::2]]
    return "".join(parts)


def moved(link: str, source: str, uri: str) -> str:
    """Return a link of the file ``source`` of the repository as the page ``uri`` needs it."""
    name, mark, anchor = link.partition("#")
    if not name or ":" in name:
        return link
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), name))
    if target.startswith("studies/"):
        place, mark, anchor = PLACES["studies"], "#", posixpath.basename(target).partition(".")[0]
    else:
        place = PLACES.get(target, target.removeprefix("docs/"))
    return posixpath.relpath(place, posixpath.dirname(uri) or ".") + mark + anchor


def studies() -> str:
    """Return a page with every study file."""
    parts = ["# Studies", "The plans of the results pages: `limbeck study FILE --out FOLDER` runs one."]
    for file in sorted((ROOT / "studies").glob("*.yaml")):
        parts.append(f"## {file.stem}\n\n```yaml\n{file.read_text(encoding='utf-8').strip()}\n```")
    return "\n\n".join(parts)


def reference() -> dict[str, str]:
    """Return the pages of the Python API by name: one line an object, which mkdocstrings fills from its docstring."""
    found = {name: getattr(limbeck, name) for name in sorted(limbeck.__all__, key=str.lower)}
    classes = {n: o for n, o in found.items() if inspect.isclass(o)}
    techniques = {t.__name__: t for t in TECHNIQUES.values()} | {
        n: o for n, o in classes.items() if issubclass(o, Technique)
    }
    groups = {
        "functions": ("Functions", {n: o for n, o in found.items() if n not in classes}),
        "classes": ("Models, results and errors", {n: o for n, o in classes.items() if n not in techniques}),
        "techniques": ("Techniques", techniques),
    }
    return {
        name: f"# {title}\n\n" + "\n\n".join(_object(n, o, n in found) for n, o in objects.items()) + "\n"
        for name, (title, objects) in groups.items()
    }


def _object(name: str, value: Any, public: bool) -> str:
    """Return the directive of one object; a technique has a table of its options in place of the protocol's methods."""
    callable_module = inspect.ismodule(value)  # limbeck.study: a room that is called like a function
    place = value.__name__ if callable_module else f"{value.__module__}.{value.__name__}"
    technique = inspect.isclass(value) and issubclass(value, Technique)
    options = {"heading": f"limbeck.{name}" if public else place, "toc_label": name}
    if technique or callable_module:
        options["members"] = "false"
    lines = [f"::: {place}", "    options:", *(f"      {key}: {text}" for key, text in options.items())]
    return "\n".join([*lines, *(_options(value) if technique else ())])


def _options(technique: type[Technique]) -> list[str]:
    """Return the table of a technique's options."""
    lines = ["", "| option | default | what it does |", "|---|---|---|"]
    for name, field in technique.model_fields.items():
        if name != "kind":
            default = "" if field.is_required() else f"`{field.get_default(call_default_factory=True)!r}`"
            told = " ".join((field.description or "").split()).replace("|", "\\|")
            lines.append(f"| `{name}` | {default} | {told} |")
    return lines


def navigation() -> list[Any]:
    """Return the navigation: the sections of docs/README.md, each with the pages that it names."""
    text = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    named: dict[str, list[Any]] = {}
    for title, body in sections.items():
        targets = dict.fromkeys(moved(link, "docs/README.md", "pages.md") for _, link, _ in LINK.findall(body))
        named[title] = [t for t in targets if t.endswith(".md") and "#" not in t]
    verbs = sorted(f.stem for f in (ROOT / "docs" / "verbs").glob("*.md") if f.stem != "README")
    python = [f"reference/{name}.md" for name in reference()]
    return [
        {"Home": "index.md"},
        {"Quickstart": "quickstart.md"},
        {"Guides": [*named["Guides"], *named["Reference"]]},
        {"Verbs": ["verbs/README.md", *({verb: f"verbs/{verb}.md"} for verb in verbs)]},
        {"Python": python},
        {"Results": named["Results"]},
        {"Glossary": "glossary.md"},
        {"Project": ["pages.md", *named["How it is built"], "project/studies.md", "project/license.md"]},
    ]
