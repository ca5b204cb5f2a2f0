"""Open the built site in headless Chromium, from disk, and look for what readers would trip over.

Usage: python scripts/site/check.py build/site [--screenshots FOLDER] [--only PATTERN]

Every page is opened at 390 and at 1,440 pixels. Wrong are: a page wider than its window, an error on the console, a
request for anything that is not on disk, a picture that does not load, a link to a file or an anchor that is missing,
and a search without results.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from playwright.sync_api import Page, TimeoutError, sync_playwright

WIDTHS = (390, 1440)
PLAIN = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
)
OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
LINKS = "() => [...document.querySelectorAll('a[href]')].map(a => a.href)"
ANCHORS = "() => [...document.querySelectorAll('[id]')].map(e => e.id)"
BROKEN = "() => [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"


def main() -> int:
    """Check each page; print what is wrong; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path)
    parser.add_argument("--screenshots", type=Path, help="folder for a picture of each page and width")
    parser.add_argument("--only", default="", help="check only pages whose path contains this")
    given = parser.parse_args()
    site = given.site.resolve()
    pages = [p for p in sorted(site.rglob("*.html")) if given.only in str(p.relative_to(site)) and p.name != "404.html"]
    found = list(wrong(site, pages, given.screenshots))
    print("\n".join(found) if found else f"{len(pages)} pages at {WIDTHS[0]} and {WIDTHS[1]} pixels: nothing wrong")
    return bool(found)


def wrong(site: Path, pages: list[Path], pictures: Path | None = None) -> Iterator[str]:
    """Yield a sentence for each thing that is wrong."""
    links: dict[Path, list[str]] = {}
    anchors: dict[Path, set[str]] = {}
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=PLAIN)
        for width in WIDTHS:
            page = browser.new_page(viewport={"width": width, "height": 900})
            heard = listen(page)
            for path in pages:
                name = path.relative_to(site)
                heard.clear()
                page.goto(path.as_uri())
                page.wait_for_load_state("load")
                wide = page.evaluate(OVERFLOW)
                heard += [f"{wide} pixels too wide"] * (wide > 0) + [f"no picture {s}" for s in page.evaluate(BROKEN)]
                yield from (f"{name} at {width}: {what}" for what in heard)
                links[path], anchors[path] = page.evaluate(LINKS), set(page.evaluate(ANCHORS))
                if pictures is not None:
                    pictures.mkdir(parents=True, exist_ok=True)
                    page.screenshot(path=pictures / f"{str(name).replace(os.sep, '-')}-{width}.png")
            yield from search(page, site / "index.html", width)
        browser.close()
    yield from broken(site, links, anchors)


def listen(page: Page) -> list[str]:
    """Return a list that grows by a sentence for each error and each request that leaves the disk."""
    heard: list[str] = []
    page.on("console", lambda m: heard.append(f"console: {m.text}") if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: heard.append(f"error: {e}"))
    page.on("request", lambda r: heard.append(f"asks for {r.url}") if r.url.startswith("http") else None)
    page.on("requestfailed", lambda r: heard.append(f"does not load {r.url}"))
    return heard


def search(page: Page, start: Path, width: int) -> Iterator[str]:
    """Yield a sentence if the search of a page finds nothing for a word that the site has."""
    page.goto(start.as_uri())
    if width < 960:
        page.click("label.md-header__button[for=__search]")
    page.click("input.md-search__input")
    page.keyboard.type("distillation")
    try:
        page.wait_for_selector(".md-search-result__link", timeout=10_000)
    except TimeoutError:
        yield f"search at {width}: nothing is found for 'distillation'"


def broken(site: Path, links: dict[Path, list[str]], anchors: dict[Path, set[str]]) -> Iterator[str]:
    """Yield a sentence for each link that leads to no file of the site, or to no anchor of a page."""
    for page, targets in links.items():
        name = page.relative_to(site)
        for link in dict.fromkeys(targets):
            parts = urlsplit(link)
            target, anchor = Path(unquote(parts.path)), unquote(parts.fragment)
            if parts.scheme != "file":
                continue
            if not target.is_file():
                yield f"{name}: leads to {target}, which is missing"
            elif anchor and target in anchors and anchor not in anchors[target]:
                yield f"{name}: leads to {target.relative_to(site)}#{anchor}, which is missing"


def chromium() -> str:
    """Return the path of the browser, from CHROMIUM or from PATH.

    Raises:
        SystemExit: there is none.
    """
    for name in (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome"):
        if name and (found := shutil.which(name)):
            return found
    raise SystemExit("no Chromium found: install it (Debian: apt-get install chromium) or name it in CHROMIUM")


if __name__ == "__main__":
    sys.exit(main())
