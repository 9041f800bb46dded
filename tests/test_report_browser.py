# ruff: noqa: E501  the page's own language, kept in one line a statement
"""The report in a real browser: it draws without an error, and answers to the mouse and the keyboard."""

import json
import re
import shutil
import subprocess

import pytest

from accm_core.report import render_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]

ACTIONS = """
<script>
const seen = { errors: [] };
const key = (name) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
const listedIds = () => [...document.querySelectorAll("#rows tr[data-unit] td:first-child")].map((cell) => Number(cell.textContent));
const drawn = (canvas) => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value);
window.addEventListener("error", (event) => seen.errors.push(event.message));
seen.rows = listedIds().length;
seen.blank = [...document.querySelectorAll("canvas")].filter((canvas) => !drawn(canvas)).map((canvas) => canvas.getAttribute("aria-label"));
seen.first = document.querySelector(".unit-head h2")?.textContent;
const heading = (name) => [...document.querySelectorAll("#headings button")].find((button) => button.textContent.startsWith(name));
if (seen.rows > 2) {
  heading("Spikes").click();
  seen.bySpikes = [...document.querySelectorAll("#rows tr")].map((row) => Number(row.children[8].textContent.replace(",", "")));
  seen.ariaSort = heading("Spikes").parentNode.getAttribute("aria-sort");
  heading("Unit").click();
  document.querySelector('#rows tr[data-unit="0"]').focus();
  key("ArrowDown"); key("ArrowDown");
  seen.afterKeys = document.querySelector(".unit-head h2").textContent;
  seen.hash = location.hash;
  seen.focused = document.activeElement.dataset.unit;
  document.querySelector('#filters button[data-label="good"]').click();
  seen.good = listedIds();
  const raster = document.getElementById("raster");
  const dark = () => getComputedStyle(document.body).backgroundColor;
  seen.light = dark();
  document.getElementById("theme").click();
  seen.dark = dark();
  seen.blankInDark = [...document.querySelectorAll("canvas")].filter((canvas) => !drawn(canvas)).length;
}
seen.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
document.title = JSON.stringify(seen);
</script>
</body>"""


def look(page: str, folder, *, width: int = 1400) -> dict:
    """Open a page, act on it, and return what was seen."""
    file = folder / "page.html"
    catch = '<script>window.addEventListener("error", (e) => { document.documentElement.dataset.error = e.message; });</script>'
    page = page.replace("<body>", f"<body>{catch}", 1).replace("</body>", ACTIONS, 1)
    file.write_text(page)
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
            *(
                f"--user-data-dir={folder / 'profile'}",
                f"--window-size={width},1000",
                "--dump-dom",
                file.as_uri(),
            ),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert re.search(r'data-error="([^"]*)"', done.stdout) is None
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL).group(1)
    return json.loads(title.replace("&quot;", '"').replace("&amp;", "&"))


@pytest.mark.parametrize(
    "case",
    [
        {"num_units": 0},
        {"num_units": 1, "num_channels": 1, "has_geometry": False},
        {"num_units": 3, "num_channels": 4, "has_geometry": False, "num_embedded": 0},
    ],
)
def test_every_figure_is_drawn(make_sorting, tmp_path, case):
    seen = look(render_report(make_sorting(**case), title="x"), tmp_path)
    assert (seen["rows"], seen["blank"], seen["errors"], seen["wide"]) == (case["num_units"], [], [], False)


@pytest.mark.parametrize("width", [1400, 500])
def test_page_answers_to_keyboard_and_mouse(make_sorting, tmp_path, width):
    seen = look(render_report(make_sorting(num_units=7), title="x"), tmp_path, width=width)
    assert seen["errors"] == []
    assert seen["blank"] == []
    assert seen["first"] == "Unit 1"
    assert seen["bySpikes"] == sorted(seen["bySpikes"], reverse=True)
    assert seen["ariaSort"] == "descending"
    assert (seen["afterKeys"], seen["hash"], seen["focused"]) == ("Unit 3", "#unit-3", "2")
    assert seen["good"] == [1, 2, 4, 6, 7]
    assert seen["dark"] != seen["light"]
    assert seen["blankInDark"] == 0
    assert seen["wide"] is False
