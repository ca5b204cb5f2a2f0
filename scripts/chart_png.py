"""Photograph one chart of a study's page: python scripts/chart_png.py RUN_FOLDER/study.html 'part of the title' OUT.png

Needs Chromium on the path. The page itself is drawn, so that a picture in the docs is what a reader of the page sees.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_SCRIPT = """
addEventListener("load", () => {
  const found = [...document.querySelectorAll("figure")].filter((f) => f.textContent.includes(%s));
  if (!found.length) { document.title = "none"; return; }
  document.body.replaceChildren(found[0]);
  document.body.style.cssText = "margin:8px;max-width:none;background:#fff";
  dispatchEvent(new Event("resize"));
});
"""


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("title", help="words that the chart's heading or caption holds")
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", default="760,470", help="width,height in pixels")
    given = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("no Chromium on the path: install one")
    html = given.page.read_text(encoding="utf-8")
    if given.title not in html:
        sys.exit(f"{given.page} has no chart with '{given.title}'")
    html = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", html)
    words = '"' + given.title.replace("\\", "\\\\").replace('"', '\\"') + '"'
    html = html.replace("</body>", f"<script>{_SCRIPT % words}</script></body>")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(html, encoding="utf-8")
        command = [
            browser, "--headless=new", "--no-sandbox", "--hide-scrollbars", f"--window-size={given.size}",
            "--virtual-time-budget=4000", f"--screenshot={given.out.resolve()}", page.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if not given.out.is_file():
        sys.exit(f"no picture was made: {done.stderr.strip()[-300:]}")


if __name__ == "__main__":
    main()
