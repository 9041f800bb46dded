"""The command: what it checks, writes and says, and how it ends. The sorter itself is a stand-in here."""

import json
import logging
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import pytest
from nwb_files import counts, make_file, make_sorting
from typer.testing import CliRunner
from web_server import serving

from accm_core.cli import app
from accm_core.errors import RecordingError
from accm_core.progress import SORT_SHARES, Tally
from accm_core.terminal import PlainProgress, format_seconds

runner = CliRunner()


@pytest.fixture
def session(tmp_path):
    return make_file(tmp_path / "session.nwb", num_channels=4, num_samples=30_000)


@pytest.fixture
def sorter(monkeypatch):
    """A stand-in for the pipeline: counts its calls, and does what a test asks it to."""

    def sort(recording, params=None, *, model=None, device="auto", seed=0, on_progress=None):
        module.calls.append({"params": params, "device": device, "seed": seed, "model": model})
        for stage in ("detect", "cluster"):
            on_progress(stage, 0.0)
            module.act()
            on_progress(stage, 1.0)
        sorting = make_sorting(recording, num_units=module.num_units)
        return replace(sorting, provenance={**sorting.provenance, "warnings": ["the stand-in warns"]})

    module = SimpleNamespace(calls=[], num_units=3, act=lambda: None)
    monkeypatch.setattr("accm_core.session.sort", sort)
    return module


def run(*args):
    return runner.invoke(app, [str(arg) for arg in args])


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- sort ----


def test_sort_writes_the_session_and_the_report(session, sorter):
    before = session.read_bytes()
    done = run("sort", session)
    assert done.exit_code == 0, done.output
    assert files_of(session.parent) == ["session.nwb", "session_sorted.html", "session_sorted.nwb"]
    with h5py.File(session.with_name("session_sorted.nwb")) as file:
        assert len(file["units/id"]) == 3
    assert session.read_bytes() == before
    assert re.search(r"units +3", done.stdout)
    assert "session_sorted.html" in done.stdout
    assert re.search(r"^ *\d+%  detect$", done.stderr, re.MULTILINE)
    assert "warning: the stand-in warns" in done.stderr


def test_sort_as_json_prints_one_object(session, sorter):
    done = run("sort", session, "--json", "--no-report", "--seed", 7, "--device", "cpu")
    result = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert (result["units"], result["spikes"], result["channels"], result["report"]) == (3, 120, 4, None)
    assert result["output"] == str(session.with_name("session_sorted.nwb"))
    assert "the stand-in warns" in result["warnings"]
    assert sorter.calls[0]["seed"] == 7
    assert sorter.calls[0]["device"] == "cpu"
    assert files_of(session.parent) == ["session.nwb", "session_sorted.nwb"]


def test_sort_quietly_says_nothing(session, sorter):
    done = run("sort", session, "-q")
    assert (done.exit_code, done.output) == (0, "")


def test_verbose_shows_the_log_and_other_runs_do_not(session, sorter):
    sorter.act = lambda: logging.getLogger("accm_core.pipeline").info("12 clusters")
    assert "12 clusters" in run("sort", session, "-v").stderr
    assert "12 clusters" not in run("sort", session, "--overwrite").stderr


def test_sort_without_units_is_a_result(session, sorter):
    sorter.num_units = 0
    done = run("sort", session, "--json")
    assert (done.exit_code, json.loads(done.stdout)["units"]) == (0, 0)
    assert session.with_name("session_sorted.html").is_file()


def test_sort_takes_parameters(session, sorter, tmp_path):
    (tmp_path / "p.toml").write_text("[detect]\nthreshold = 7\n")
    assert (
        run("sort", session, "--params", tmp_path / "p.toml", "--set", "detect.peak_sign=pos").exit_code == 0
    )
    detect = sorter.calls[0]["params"].detect
    assert (detect.threshold, detect.peak_sign) == (7, "pos")


@pytest.fixture
def web(session, monkeypatch, tmp_path_factory):
    """The address of the session; we are in an empty folder."""
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as server:
        server.files["session.nwb"] = session.read_bytes()
        yield server.address("session.nwb")


def test_sort_of_an_address_writes_here(web, sorter):
    done = run("sort", web, "--json")
    assert done.exit_code == 0, done.output
    assert files_of(Path.cwd()) == ["session_sorted.html", "session_sorted.nwb"]
    assert json.loads(done.stdout)["output"] == "session_sorted.nwb"
    with h5py.File("session_sorted.nwb") as file:
        assert file["acquisition/ElectricalSeries/data"].shape == (30_000, 4)
        assert len(file["units/id"]) == 3
    assert json.loads(run("info", web, "--json").stdout)["file"] == web


@pytest.mark.parametrize(
    ("command", "end", "options", "words"),
    [
        ("sort", "x", (), "There is no file at"),
        ("info", "x", (), "There is no file at"),
        ("sort", "", ("--link",), "--link needs an NWB file of this machine"),
        ("sort", "", ("--format", "spikeglx"), "--format reads files of this machine only"),
        ("report", "", (), "is an address; a file of this machine is needed"),
    ],
)
def test_refusals_of_addresses(web, sorter, command, end, options, words):
    done = run(command, web + end, *options)
    assert (done.exit_code, sorter.calls) == (2, [])
    assert words in " ".join(done.stderr.split())
    assert files_of(Path.cwd()) == []


BINARY = (
    "--format",
    "binary",
    "--format-option",
    "sampling_frequency=30000",
    "--format-option",
    "dtype=int16",
)


@pytest.fixture
def raw(tmp_path):
    counts(30_000, 4).tofile(tmp_path / "raw.dat")
    return tmp_path / "raw.dat"


def test_sort_of_another_format_writes_nwb_and_the_report(raw, sorter):
    done = run("sort", raw, *BINARY, "--format-option", "num_channels=4", "--json")
    assert done.exit_code == 0, done.output
    assert files_of(raw.parent) == ["raw.dat", "raw_sorted.html", "raw_sorted.nwb"]
    with h5py.File(raw.with_name("raw_sorted.nwb")) as file:
        assert len(file["units/id"]) == 3
        assert len(file["general/extracellular_ephys/electrodes/id"]) == 4
    warned = json.loads(done.stdout)["warnings"]
    assert any("no gains" in warning for warning in warned)
    assert any("session_start_time" in warning for warning in warned)
    assert run("report", raw.with_name("raw_sorted.nwb")).exit_code == 0


def test_info_of_another_format(raw):
    done = run("info", raw, *BINARY, "--format-option", "num_channels=4", "--json")
    told = json.loads(done.stdout)
    assert (told["channels"], told["sampling_frequency"], told["samples"]) == (4, 30_000, 30_000)
    assert (told["series"], told["dtype"], told["geometry"]) == ("binary", "int16", None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--format", "tape"), "'tape' is not known. Use one of"),
        (BINARY, "It also takes --format-option num_channels, t_starts"),
        ((*BINARY, "--link"), "--link needs an NWB file of this machine"),
        (("--format-option", "dtype=int16"), "--format-option needs --format"),
        (("--format", "binary", "--format-option", "dtype"), "Cannot read --format-option 'dtype'"),
    ],
)
def test_refusals_of_formats(raw, sorter, options, words):
    done = run("sort", raw, *options)
    assert (done.exit_code, sorter.calls) == (2, [])
    assert words in " ".join(done.stderr.split())
    assert files_of(raw.parent) == ["raw.dat"]


def test_link_makes_a_small_file(session, sorter):
    assert run("sort", session, "--link").exit_code == 0
    with h5py.File(session.with_name("session_sorted.nwb")) as file:
        link = file.get("acquisition/ElectricalSeries/data", getlink=True)
        assert isinstance(link, h5py.ExternalLink)


REFUSED = [
    (["--set", "detect.threshold=99"], "less than or equal to 50"),
    (["--set", "detect.foo=1"], "Unknown parameter 'detect.foo'"),
    (["--params", "none.toml"], "Cannot read parameters"),
    (["--device", "gpu"], "gpu"),
    (["--device", "cuda:x"], "cuda:x"),
    (["--seed", "-1"], "--seed"),
    (["--units", "keep"], "--units"),
    (["--model", "large"], "no model 'large'"),
    (["--model", "no_such.safetensors"], "does not exist"),
    (["-o", "no_such_folder/x.nwb"], "does not exist"),
    (["-o", "x.h5"], "does not end in .nwb"),
    (["--series", "acquisition/Other"], "Other"),
    (["--probe", "none.json"], "none.json"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED)
def test_bad_arguments_are_refused_before_the_work(session, sorter, arguments, words):
    done = run("sort", session, *arguments)
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.split())
    assert done.stdout == ""
    assert sorter.calls == []
    assert files_of(session.parent) == ["session.nwb"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.nwb", "does not exist"),
        (".", "is a folder. Give the path of an NWB file, or say what it is with --format"),
        ("s3://bucket/s.nwb", "Give the https:// address of the file"),
        ("dandi://DANDI/000006", "that of its download button"),
    ],
)
def test_session_that_is_no_file(sorter, name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("sort", name, "--json")
    assert done.exit_code == 2
    assert words in done.stderr
    error = json.loads(done.stdout)
    assert words in error["error"]
    assert error["exit_code"] == 2


def test_session_that_is_no_nwb(sorter, tmp_path):
    (tmp_path / "s.nwb").write_text("hello")
    done = run("sort", tmp_path / "s.nwb")
    assert (done.exit_code, sorter.calls, files_of(tmp_path)) == (2, [], ["s.nwb"])


def test_output_that_exists_is_kept_unless_told(session, sorter):
    target = session.with_name("session_sorted.nwb")
    target.write_text("precious")
    done = run("sort", session)
    assert (done.exit_code, sorter.calls, target.read_text()) == (2, [], "precious")
    assert "--overwrite" in done.stderr
    assert run("sort", session, "--overwrite").exit_code == 0
    assert h5py.is_hdf5(target)


def test_session_is_never_the_output(session, sorter):
    done = run("sort", session, "-o", session, "--overwrite")
    assert (done.exit_code, sorter.calls) == (2, [])
    assert "the session itself" in done.stderr


def test_foreign_page_is_never_replaced(session, sorter):
    page = session.with_name("session_sorted.html")
    page.write_text("<html>my notes</html>")
    done = run("sort", session, "--overwrite")
    assert (done.exit_code, sorter.calls, page.read_text()) == (2, [], "<html>my notes</html>")
    assert run("sort", session, "--no-report").exit_code == 0


def test_units_in_the_session_are_refused_replaced_or_kept(session, sorter, tmp_path):
    assert run("sort", session, "-o", tmp_path / "once.nwb").exit_code == 0
    sorter.calls.clear()
    done = run("sort", tmp_path / "once.nwb")
    assert (done.exit_code, sorter.calls) == (2, [])
    assert "--units replace" in done.stderr
    for mode in ("replace", "processing"):
        target = tmp_path / f"{mode}.nwb"
        assert run("sort", tmp_path / "once.nwb", "-o", target, "--units", mode).exit_code == 0
        with h5py.File(target) as file:
            assert ("units" in file, "processing/ecephys" in file) == (True, mode == "processing")


# ---- how it ends ----


def raising(error):
    def act():
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (RecordingError("Found 3 peaks."), 2, "error: Found 3 peaks."),
        (ZeroDivisionError("oops"), 1, "unexpected ZeroDivisionError: oops"),
        (MemoryError(), 1, "MemoryError"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
@pytest.mark.parametrize("verbose", [False, True])
def test_failures_have_a_code_a_message_and_leave_nothing(session, sorter, error, code, words, verbose):
    sorter.act = raising(error)
    done = run("sort", session, "--json", *(["-v"] if verbose else []))
    assert done.exit_code == code
    assert words in done.stderr
    assert json.loads(done.stdout)["exit_code"] == code
    assert ("Traceback" in done.stderr) == (verbose and code in (1, 2))
    assert ("Run it again with -v" in done.stderr) == (code == 1 and not verbose)
    assert files_of(session.parent) == ["session.nwb"]


SLOW_SORT = """
import signal, sys, time
from types import ModuleType
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
def sort(recording, params=None, *, model=None, device="auto", seed=0, on_progress=None):
    on_progress("detect", 0.5)
    open({started!r}, "w").close()
    time.sleep(60)
module = ModuleType("accm_core.pipeline")
module.sort = sort
sys.modules["accm_core.pipeline"] = module
from accm_core.cli import main
main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_the_command_cleanly(session, tmp_path, number, code):
    started = tmp_path / "started"
    program = SLOW_SORT.format(started=str(started))
    process = subprocess.Popen(
        [sys.executable, "-c", program, "sort", str(session)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not started.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (code, "")
    assert "interrupted" in stderr
    assert files_of(tmp_path) == ["session.nwb", "started"]


# ---- the other commands ----


def test_info_describes_the_recording(session):
    done = run("info", session)
    assert done.exit_code == 0
    assert "acquisition/ElectricalSeries (int16)" in done.stdout
    result = json.loads(run("info", session, "--json").stdout)
    assert (result["channels"], result["samples"], result["gaps"]) == (4, 30_000, [])
    assert result["duration_s"] == pytest.approx(30_000 / result["sampling_frequency"])


def test_report_is_made_again(session, sorter):
    run("sort", session)
    page = session.with_name("session_sorted.html")
    page.unlink()
    done = run("report", session.with_name("session_sorted.nwb"))
    assert done.exit_code == 0
    assert "<h1>session.nwb</h1>" in page.read_text()
    assert run("report", session).exit_code == 2  # a session that accm did not sort


def test_help_names_commands_parameters_and_codes():
    top = run("--help").stdout
    assert [name for name in ("sort", "info", "simulate", "evaluate", "report") if name not in top] == []
    assert "130 interrupted" in top
    assert "detect.threshold" in run("sort", "--help").stdout
    assert "drift_um" in run("simulate", "--help").stdout


def test_version():
    assert re.fullmatch(r"accm \d+\.\d+\.\d+\n", run("--version").stdout)


def test_simulate_writes_recording_and_truth(tmp_path):
    target = tmp_path / "sim.nwb"
    arguments = ["simulate", target, "--probe", "tetrode", "--duration", "2", "--units", "2", "--seed", "3"]
    done = run(*arguments, "--set", "noise_uV=9", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["units"], result["channels"], result["duration_s"]) == (2, 4, 2.0)
    assert files_of(tmp_path) == ["sim.nwb", "sim_truth.nwb"]
    assert run(*arguments).exit_code == 2  # exists
    assert run(*arguments, "--overwrite", "--set", "noise=9").exit_code == 2
    hybrid = run("simulate", tmp_path / "hybrid.nwb", "--hybrid", target, "--units", "1")
    assert hybrid.exit_code == 0, hybrid.output
    assert run("simulate", target, "--hybrid", target, "--overwrite").exit_code == 2  # would eat its parent


@pytest.mark.slow
def test_simulate_sort_evaluate_report_for_real(tmp_path):
    session, truth = tmp_path / "s.nwb", tmp_path / "s_truth.nwb"
    assert (
        run("simulate", session, "--probe", "tetrode", "--duration", "20", "--units", "3", "-q").exit_code
        == 0
    )
    done = run("sort", session, "--json", "--device", "cpu", "--set", "learn.num_steps=60")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert 2 <= result["units"] <= 6
    done = run("evaluate", result["output"], "--truth", truth, "--json")
    assert json.loads(done.stdout)["well_detected"] >= 2
    page = Path(result["report"])
    before = units_of(page)
    assert run("report", result["output"]).exit_code == 0
    assert units_of(page) == before  # the report made from the file is the one made from the sort


def units_of(page: Path) -> list[dict]:
    """What a report tells of the units, but for its pictures."""
    text = re.search(r'<script id="data" type="application/json">(.*?)</script>', page.read_text()).group(1)
    pictures = ("mean", "sd")  # packed with a scale of their own
    return [{k: v for k, v in unit.items() if k not in pictures} for unit in json.loads(text)["units"]]


# ---- progress ----


def test_plain_progress_shows_stage_percent_and_time_left():
    lines, clock = [], iter([0.0, 0.1, 5.0, 20.0, 25.0, 40.0, 60.0])
    progress = PlainProgress({"a": 1, "b": 3}, lines.append, lambda: next(clock))
    for stage, fraction in [("a", 0.0), ("a", 0.2), ("a", 0.8), ("a", 0.9), ("a", 1.0), ("b", 1.0)]:
        progress(stage, fraction)
    assert lines == ["  0%  a", " 20%  a, 1 min 20 s left", " 25%  a, 2 min 0 s left", "100%  b, 0.0 s left"]


def test_progress_adds_up_when_shanks_go_through_the_stages_one_by_one():
    tally = Tally({"a": 1, "b": 3}, lambda: 0.0)
    news = [("a", 0.5), ("b", 0.5), ("other", 0.7), ("a", 0.4), ("a", 1.0), ("b", 2.0)]
    overall = [tally.update(stage, fraction)[0] for stage, fraction in news]
    assert overall == [0.125, 0.5, 0.5, 0.5, 0.625, 1.0]


def test_every_stage_has_its_share_of_the_bar():
    from accm_core.pipeline import STAGES

    assert set(SORT_SHARES) == {*STAGES, "write", "report"}
    assert sum(SORT_SHARES.values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 0 s"), (3600, "1 h 0 min"), (86_399, "23 h 59 min")],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text
