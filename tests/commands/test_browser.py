"""`score --html` in a real browser without a window: what it lays out, in which colours, and a picture of it."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lmtrain

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
LOOK = """<script>
const units = [...document.querySelectorAll("main i")];
document.body.dataset.seen = JSON.stringify({
  units: units.map(e => [e.textContent, getComputedStyle(e).backgroundColor, e.title, e.getBoundingClientRect().width]),
  lines: new Set(units.map(e => Math.round(e.getBoundingClientRect().top))).size,
  overflow: document.documentElement.scrollWidth - window.innerWidth,
  fetched: performance.getEntriesByType("resource").length,
  heading: parseFloat(getComputedStyle(document.querySelector("h1")).fontSize),
});
</script>"""


def look(page: Path, width: int, tmp_path: Path) -> dict[str, Any]:
    """What the browser says of the page, and `picture.png` beside it."""
    watched = tmp_path / "watched.html"
    watched.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{LOOK}</body>"), encoding="utf-8")
    command = [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
               "--virtual-time-budget=3000", f"--window-size={width},900",
               f"--user-data-dir={tmp_path / 'profile'}"]  # fmt: skip
    shown = _run([*command, "--dump-dom", watched.as_uri()])
    _run([*command, f"--screenshot={tmp_path / 'picture.png'}", page.as_uri()])
    found = re.search(r'data-seen="(.*?)"', shown, re.DOTALL)
    assert found, shown[:2000]
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    return seen


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome is installed")
def test_the_page_of_surprise_is_laid_out_by_a_browser(place: Path, call: Callable[..., Any], tmp_path: Path) -> None:
    text = 'the cat <b>sat</b> & "ran"\n\nहिन्दी में 日本語 Ελληνικά\n' + "x" * 300 + "\n" + "the mat and then " * 20 + "\n"
    Path("given").write_text(text, encoding="utf-8")
    assert call("score", "run", "given", "--html", "page.html", "--unit", "token").code == 0
    units = lmtrain.load("run").surprise(text, unit="token")
    seen = look(place / "page.html", 900, tmp_path)
    assert [shown.rstrip("⏎") for shown, *_ in seen["units"]] == [unit.text.rstrip("\n") for unit in units]
    assert all(width > 0 for *_, width in seen["units"])
    assert (seen["overflow"] <= 0, seen["fetched"], seen["heading"] < 25) == (True, 0, True)
    assert seen["lines"] >= 7  # the long word and the long line are broken, too
    levels = [min(12, int(unit.surprisal)) for unit in units]
    colour_of = {level: seen["units"][levels.index(level)][1] for level in sorted(set(levels))}
    assert len(set(colour_of.values())) == len(colour_of) > 1
    assert all(colour == colour_of[level] for level, (_, colour, *_) in zip(levels, seen["units"], strict=True))
    assert all(f"{unit.surprisal:.2f} nats" in title for unit, (_, _, title, _) in zip(units, seen["units"], strict=True))
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    narrow = look(place / "page.html", 500, tmp_path)
    assert narrow["overflow"] <= 0
    assert narrow["lines"] > seen["lines"]
