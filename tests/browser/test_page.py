"""The page at ``/`` in a real browser, against a server whose jobs do what the test says."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_backend import FakeBackend, ago
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium")
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE_MS = 20_000  # of a loaded machine; nothing waits for it that goes well
LOST_CONNECTION = "net::ERR_"  # what the browser itself says of a server that is away
REFUSED = "the server responded with a status of"

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
SLICE = 8 * 1024**2  # the first slice of an upload
HOSTILE = "<img src=x onerror='window.hacked=1'>&amp;.nwb"
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
LONG = "sub-mouse12_ses-2026-11-22_" + 120 * "x" + ".nwb"

# the least contrast of any text with the ground it stands on, as WCAG counts it, and that text
CONTRAST = """() => {
  const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const mix = (top, under) => top.slice(0, 3).map((value, k) => value * top[3] + under[k] * (1 - top[3]));
  const light = (color) => color.map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const ground = (node) => {
    const under = node.parentElement ? ground(node.parentElement) : [255, 255, 255];
    return mix(parse(getComputedStyle(node).backgroundColor), under);
  };
  let least = [99, ""];
  for (const node of document.querySelectorAll("body *")) {
    const words = [...node.childNodes].filter((child) => child.nodeType === 3 && child.data.trim()).map((child) => child.data);
    if (!words.length || !node.checkVisibility({ opacityProperty: true })) continue;
    const under = ground(node), ink = mix(parse(getComputedStyle(node).color), under);
    const [low, high] = [light(under), light(ink)].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < least[0]) least = [ratio, words.join(" ")];
  }
  return least;
}"""  # noqa: E501


expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")  # Playwright keeps an event loop running: no other module may meet it
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def backend() -> Iterator[FakeBackend]:
    server = FakeBackend()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def open_page(chromium: Browser, backend: FakeBackend) -> Iterator[Callable[..., Page]]:
    """Open the page in a browser of its own; no page may ask another server or complain in the console."""
    contexts, foreign, complaints = [], [], []

    def heard(text: str) -> None:
        if LOST_CONNECTION not in text and REFUSED not in text:
            complaints.append(text)

    def open_(*, view: str = "", **settings: Any) -> Page:
        context = chromium.new_context(reduced_motion="reduce", **settings)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda sent: sent.url.startswith(backend.url) or foreign.append(sent.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: said.type in ("error", "warning") and heard(said.text))
        page.on("dialog", lambda dialog: dialog.accept())  # leaving while a file is sent
        page.goto(f"{backend.url}#{view}")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert (foreign, complaints) == ([], [])


def look_again(page: Page) -> None:
    """Make the page look now, as when its tab comes back into sight."""
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def row(page: Page, title: str) -> Locator:
    return page.locator("li.row").filter(has=page.get_by_text(title, exact=True))


def choose_file(page: Page, file: Path, within: str = "#sort-source") -> None:
    page.locator(f"{within} input[type=file]").set_input_files(file)


def press_sort(page: Page) -> None:
    page.get_by_role("button", name="Sort", exact=True).click()


@pytest.fixture
def session(tmp_path: Path) -> Path:
    """A file of two slices and a bit that begins as HDF5."""
    file = tmp_path / "mouse 12.nwb"
    file.write_bytes(HDF5_SIGNATURE + bytes(range(256)) * (2 * SLICE // 256) + b"end")
    return file


def fill(backend: FakeBackend, name: str) -> None:
    """Put something into every view."""
    result = {"units": 3, "spikes": 1200, "labels": {"good": 1, "mua": 1, "noise": 1}, "warnings": [name]}
    times = {"created": ago(500), "started": ago(400)}
    backend.add_job("a", "running", input=name, stage="match", fraction=0.43, eta_s=400, **times)
    backend.add_job("b", "queued", input=name)
    backend.add_job("c", "done", input=name, result=result, finished=ago(100), **times)
    backend.add_job("d", "failed", input=name, error=f"Cannot read {name}.", finished=ago(100), **times)
    backend.add_job("e", "cancelled", kind="finetune", name=name, input=name, finished=ago(9), **times)
    backend.logs["a"] = backend.logs["c"] = [f"reads {name}"]
    backend.models[name] = {"kind": "finetuned", "units": 2, "bytes": 900, "problem": f"{name} is no model."}
    backend.uploads[name] = {"name": name, "bytes": 4, "total": 9, "complete": False, "created": ago(7)}
    backend.streams = [
        {
            "session": name,
            "state": "catching up",
            "num_channels": 64,
            "sampling_frequency": 30000.0,
            "samples": 9_000_000,
            "spikes": 812,
            "units": 7,
            "latency_ms": {"p50": 1.4, "p99": None},
            "behind_s": 4.2,
            "started": ago(301),
        }
    ]


def visit(page: Page, view: str) -> None:
    page.get_by_role("link", name=view, exact=True).click()
    expect(page.locator(f"[data-view={view.lower()}] li.row").first).to_be_visible()


def test_key_is_asked_for_kept_and_forgotten(backend, open_page):
    backend.key = "s3cret key;%".replace(" ", "-")
    backend.add_job("a", "done", result={"units": 2, "spikes": 9, "labels": {}})
    page = open_page()
    field = page.get_by_label("API key")
    expect(field).to_be_focused()
    expect(page.get_by_role("navigation")).to_be_hidden()
    field.fill("wrong")
    field.press("Enter")
    expect(page.get_by_text("The server refuses this key.")).to_be_visible()
    field.fill(backend.key)
    field.press("Enter")
    expect(row(page, "a.nwb")).to_be_visible()
    with page.expect_download() as download:  # a link carries no header: the cookie lets it in
        page.get_by_role("link", name="Sorted NWB of a.nwb").click()
    assert Path(download.value.path()).read_text() == "result of a"
    page.reload()
    expect(row(page, "a.nwb")).to_be_visible()
    page.get_by_role("button", name="Forget key").click()
    expect(field).to_be_visible()
    assert page.context.cookies() == []
    page.reload()
    expect(field).to_be_visible()


def test_session_is_sent_sorted_and_offered(backend, open_page, session):
    backend.hold_uploads()
    page = open_page()
    choose_file(page, session)
    press_sort(page)
    sending = row(page, "mouse 12.nwb")
    expect(sending.get_by_text("Sending · 0 bytes of 17 MB")).to_be_visible()
    backend.let_slices(1)
    expect(sending.get_by_text("49 %")).to_be_visible()
    backend.let_slices(9)
    job = row(page, "mouse_12.nwb")
    expect(job.get_by_text("Sort · waiting, next")).to_be_visible()
    expect(sending).to_have_count(0)
    assert backend.contents["mouse_12.nwb"] == session.read_bytes()
    asked = {"input": {"upload": "mouse_12.nwb"}, "seed": 0, "units": "fail", "params": {}}
    assert backend.asked[-1] == ("POST", "sort", asked)

    backend.add_job("job1", "running", started=ago(65), stage="detect", fraction=0.425, eta_s=300)
    look_again(page)
    expect(job.get_by_text("Detecting spikes")).to_be_visible()
    expect(job.get_by_text("42 %")).to_be_visible()
    expect(job.get_by_text("5 min left")).to_be_visible()
    expect(job.get_by_role("progressbar")).to_have_js_property("value", 0.425)
    expect(page).to_have_title("42 % · accm")

    labels = {"good": 22, "mua": 6, "noise": 3}
    backend.add_job("job1", "done", finished=ago(0), result={"units": 31, "spikes": 12_345, "labels": labels})
    look_again(page)
    expect(job.get_by_text("31 units")).to_be_visible()
    expect(job.get_by_text("22 good")).to_be_visible()
    expect(job.get_by_text("12,345 spikes")).to_be_visible()
    expect(job.get_by_role("progressbar")).to_be_hidden()
    assert job.get_by_role("link", name="Sorted NWB").get_attribute("href") == "jobs/job1/result"
    assert job.get_by_role("link", name="Report").get_attribute("href") == "jobs/job1/report"
    expect(page.get_by_role("status")).to_have_text("mouse_12.nwb: done. 31 units")


def test_upload_goes_on_after_a_reload(backend, open_page, session):
    backend.hold_uploads()
    page = open_page()
    choose_file(page, session)
    press_sort(page)
    backend.let_slices(1)
    expect(row(page, "mouse 12.nwb").get_by_text("49 %")).to_be_visible()
    page.reload()
    backend.asked.clear()
    choose_file(page, session)
    press_sort(page)
    backend.let_slices(9)
    expect(row(page, "mouse_12.nwb")).to_be_visible()
    assert backend.contents["mouse_12.nwb"] == session.read_bytes()
    starts = [int(re.match(r"bytes (\d+)", span)[1]) for method, _, span in backend.asked if method == "PUT"]
    assert min(starts) >= SLICE


def test_another_file_of_a_name_is_never_joined_to_it(backend, open_page, session):
    name, total = "mouse_12.nwb", session.stat().st_size
    there = {"name": name, "bytes": 9, "total": total, "complete": False, "created": ago(9)}
    backend.uploads[name], backend.contents[name] = there, bytearray(b"of another")
    page = open_page()
    choose_file(page, session)
    press_sort(page)
    page.get_by_role("button", name="Send it again").click()
    expect(row(page, name)).to_be_visible()
    assert backend.contents[name] == session.read_bytes()


def test_server_goes_and_comes_back_while_a_file_is_sent(backend, open_page, session):
    backend.hold_uploads()
    page = open_page()
    choose_file(page, session)
    press_sort(page)
    backend.let_slices(1)
    expect(row(page, "mouse 12.nwb").get_by_text("49 %")).to_be_visible()
    backend.stop()
    expect(page.get_by_text("The server does not answer. Trying again")).to_be_visible()
    backend.start()
    expect(row(page, "mouse_12.nwb")).to_be_visible()
    expect(page.get_by_text("does not answer")).to_have_count(0)
    assert backend.contents["mouse_12.nwb"] == session.read_bytes()


def test_upload_waits_where_the_server_is_busy_with_it(backend, open_page, session):
    backend.refusals["/uploads/mouse_12.nwb"] = (409, {"error": "The upload is being written."})
    page = open_page()
    choose_file(page, session)
    press_sort(page)
    expect(page.get_by_text("The server is busy with this file")).to_be_visible()
    backend.refusals.clear()
    expect(row(page, "mouse_12.nwb")).to_be_visible()
    assert backend.contents["mouse_12.nwb"] == session.read_bytes()


def test_upload_is_refused_for_good(backend, open_page, session):
    error = "The upload has 16777227 bytes; the limit is 1000 (ACCM_MAX_UPLOAD)."
    backend.refusals["/uploads/mouse_12.nwb"] = (413, {"error": error})
    page = open_page()
    choose_file(page, session)
    press_sort(page)
    expect(page.get_by_text(error)).to_be_visible()
    page.get_by_role("button", name="Dismiss mouse 12.nwb").click()
    expect(page.get_by_text("No session has been sorted yet")).to_be_visible()


def test_upload_is_cancelled(backend, open_page, session):
    backend.hold_uploads()
    page = open_page()
    choose_file(page, session)
    press_sort(page)
    backend.let_slices(1)
    expect(row(page, "mouse 12.nwb").get_by_text("49 %")).to_be_visible()
    page.get_by_role("button", name="Cancel mouse 12.nwb").click()
    expect(row(page, "mouse 12.nwb")).to_have_count(0)
    expect(page.get_by_text("No session has been sorted yet")).to_be_visible()
    page.get_by_role("link", name="Server").click()
    expect(page.get_by_text("No file is on the server.")).to_be_visible()


def test_what_is_no_nwb_file_is_not_sent(backend, open_page, tmp_path):
    file = tmp_path / "notes.nwb"
    file.write_text("not a recording")
    page = open_page()
    choose_file(page, file)
    press_sort(page)
    expect(page.get_by_text("notes.nwb is not an NWB file")).to_be_visible()
    assert backend.uploads == {}


def test_job_is_cancelled_by_keyboard_and_the_focus_stays(backend, open_page):
    backend.add_job("a", "running", started=ago(3), stage="learn", fraction=0.2)
    page = open_page()
    page.get_by_role("button", name="Cancel a.nwb").press("Enter")
    expect(row(page, "a.nwb").get_by_text("cancelled")).to_be_visible()
    expect(row(page, "a.nwb").locator(".title")).to_be_focused()


def test_focus_and_what_is_unfolded_stay_when_a_row_moves(backend, open_page):
    backend.add_job("a", "running", started=ago(3), stage="learn", fraction=0.2)
    page = open_page()
    details = page.get_by_role("button", name="Details of a.nwb")
    details.press("Enter")
    expect(page.get_by_text("Nothing yet.")).to_be_visible()
    backend.add_job("a", "done", finished=ago(0), result={"units": 1, "spikes": 9, "labels": {"good": 1}})
    look_again(page)
    expect(page.locator("#jobs-ended").get_by_text("1 good")).to_be_visible()
    expect(details).to_be_focused()
    expect(page.get_by_text("Nothing yet.")).to_be_visible()


def test_failure_is_shown_in_full_with_its_log(backend, open_page):
    error = "The session has 2 ElectricalSeries:\nacquisition/AP\nacquisition/LF\nName one with series."
    backend.add_job("a", "failed", started=ago(9), finished=ago(5), error=error)
    backend.logs["a"] = ["opens a.nwb", "Traceback"]
    page = open_page()
    expect(row(page, "a.nwb").locator(".error")).to_have_text(error, use_inner_text=True)
    page.get_by_role("button", name="Details of a.nwb").click()
    expect(page.get_by_role("region", name="Log of a.nwb")).to_have_text("opens a.nwb\nTraceback")


def test_parameters_are_read_and_refusals_shown(backend, open_page):
    detail = [{"loc": ["params", "detect", "threshold"], "msg": "Input should be greater than 2"}]
    backend.refusals["/sort"] = (400, {"error": "The request is not valid.", "detail": detail})
    page = open_page()
    page.get_by_text("Advanced").click()
    source = page.get_by_role("group", name="Session")
    source.get_by_role("radio", name="Path").check(force=True)
    source.get_by_label("Path on the server").fill("/data/mouse.nwb")
    page.get_by_label("Parameters, one a line").fill("detect.threshold")
    press_sort(page)
    expect(page.get_by_text("Parameters, line 1: “detect.threshold” is not of the form")).to_be_visible()
    page.get_by_label("Parameters, one a line").fill("")
    page.get_by_role("button", name="detect.threshold = 5").click()
    expect(page.get_by_label("Parameters, one a line")).to_have_value("detect.threshold = 5")
    settings = "# as always\ndetect.threshold = 1\n\nmotion.correct=off\ndetect.peak_sign = both"
    page.get_by_label("Parameters, one a line").fill(settings)
    press_sort(page)
    expect(page.get_by_text("params.detect.threshold: Input should be greater than 2")).to_be_visible()
    backend.refusals.clear()
    press_sort(page)
    expect(row(page, "/data/mouse.nwb")).to_be_visible()
    assert backend.asked[-1][2]["input"] == {"path": "/data/mouse.nwb"}
    params = {"detect": {"threshold": 1, "peak_sign": "both"}, "motion": {"correct": "off"}}
    assert backend.asked[-1][2]["params"] == params


def test_model_is_removed_by_keyboard_alone(backend, open_page):
    backend.models["mouse12"] = {"kind": "finetuned", "units": 12, "bytes": 900_000}
    page = open_page()
    expect(page.get_by_role("navigation")).to_be_visible()

    def tab_to(name: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            focused = page.evaluate(
                "(document.activeElement.ariaLabel ?? document.activeElement.textContent).trim()"
            )
            if focused == name:
                return
        raise AssertionError(f"{name} cannot be reached with Tab")

    tab_to("Models")
    page.keyboard.press("Enter")
    expect(row(page, "mouse12").get_by_text("Fine-tuned · 12 units · 900 kB")).to_be_visible()
    expect(row(page, "pretrained").get_by_role("button", name="Remove")).to_have_count(0)
    tab_to("Remove mouse12")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Keep it")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Remove mouse12")).to_be_focused()
    assert "mouse12" in backend.models
    page.keyboard.press("Enter")
    tab_to("Remove it")
    page.keyboard.press("Enter")
    expect(row(page, "mouse12")).to_have_count(0)
    expect(page.get_by_role("heading", name="Models")).to_be_focused()
    assert list(backend.models) == ["pretrained"]


def test_model_is_imported_and_its_card_is_readable(backend, open_page, tmp_path):
    file = tmp_path / "my model.safetensors"
    file.write_bytes(bytes(1234))
    page = open_page(view="models")
    page.get_by_role("button", name="Import a file").click()
    page.get_by_label("Model file").set_input_files(file)
    expect(page.get_by_role("textbox", name="Name")).to_have_value("my_model")
    page.get_by_role("button", name="Import", exact=True).click()
    expect(row(page, "my_model").get_by_text("1.2 kB")).to_be_visible()
    page.get_by_role("button", name="Card of my_model").click()
    expect(page.locator("#card-text")).to_contain_text('training\n    sessions: ["<i>a</i>.nwb"]')


def test_finetune_from_a_job_with_an_uploaded_table(backend, open_page):
    done = {"units": 3, "spikes": 10, "labels": {}}
    backend.add_job("a", "done", started=ago(9), finished=ago(5), result=done)
    curated = {"name": "curated.nwb", "bytes": 5, "total": 5, "complete": True, "created": ago(3)}
    backend.uploads["curated.nwb"] = curated
    page = open_page()
    page.get_by_role("button", name="Fine-tune on a.nwb").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("#finetune-session")).to_contain_text("a.nwb")
    dialog.get_by_role("button", name="Fine-tune").click()  # no name yet
    dialog.get_by_label("On the server").locator("visible=true").check(force=True)
    expect(dialog.locator("#finetune-labels select")).to_have_value("curated.nwb")
    dialog.get_by_label("Name of the new model").fill("mouse12")
    dialog.get_by_role("button", name="Fine-tune").click()
    expect(dialog).to_have_count(0)
    asked = {"input": {"upload": "a.nwb"}, "labels": {"upload": "curated.nwb"}}
    assert backend.asked[-1] == ("POST", "finetune", {**asked, "name": "mouse12", "overwrite": False})


def test_names_of_strangers_stay_text(backend, open_page):
    fill(backend, HOSTILE)
    page = open_page()
    expect(page.locator("#jobs-ended li.row")).to_have_count(3)
    expect(page.locator("#jobs-now .title").first).to_have_text(HOSTILE)
    page.get_by_role("button", name="Details of").nth(2).click()
    expect(page.locator(".warnings li").filter(has_text=HOSTILE)).to_be_visible()
    expect(page.get_by_text(f"reads {HOSTILE}")).to_be_visible()
    for view in ("Models", "Stream", "Server"):
        visit(page, view)
        shown = page.locator(f"[data-view={view.lower()}] .title").filter(has_text=HOSTILE)
        expect(shown).to_be_visible()
    page.get_by_role("button", name="Remove").last.click()
    expect(page.get_by_role("dialog").get_by_role("heading")).to_contain_text(HOSTILE)
    assert page.evaluate("[window.hacked ?? 0, document.querySelectorAll('li img').length]") == [0, 0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_fits_a_phone_and_can_be_read(backend, open_page, scheme):
    fill(backend, LONG)
    backend.models["mouse12"] = {"kind": "finetuned", "units": 12, "bytes": 900_000}
    page = open_page(color_scheme=scheme, **PHONE)
    expect(row(page, LONG).first).to_be_visible()
    page.get_by_text("Advanced").click()
    page.get_by_role("button", name="Details of").first.click()
    expect(page.get_by_text("reads sub-mouse12")).to_be_visible()
    for view in ("Sessions", "Models", "Stream", "Server"):
        visit(page, view)
        check_layout(page)
    visit(page, "Models")
    page.get_by_role("button", name="Fine-tune a model").click()
    check_layout(page)


def check_layout(page: Page) -> None:
    width = page.evaluate(
        "[document.documentElement, ...document.querySelectorAll('dialog[open]')]"
        ".map((node) => node.scrollWidth - node.clientWidth)"
    )
    assert max(width) <= 0
    ratio, text = page.evaluate(CONTRAST)
    assert ratio >= 4.5, text


def test_hidden_page_asks_nothing(backend, open_page):
    page = open_page()
    page.clock.install()
    page.add_init_script("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
    page.reload()
    expect(page.get_by_role("navigation")).to_be_visible()  # at the end of its only look
    asked = []
    page.on("request", lambda sent: asked.append(sent.url))
    page.clock.run_for(60_000)
    assert asked == []
    page.evaluate("delete document.hidden")
    with page.expect_request(re.compile("/jobs")):
        look_again(page)
    with page.expect_request(re.compile("/jobs")):  # and from then on by itself
        page.clock.run_for(2000)
