"""Sort simulated recordings with accm, its ablations and other sorters; write RESULTS.md and a picture.

    pip install -c constraints.txt --group benchmarks   # the other sorters, but for Kilosort 4
    python -m benchmarks.run                            # everything, one recording of each set
    python -m benchmarks.run --seeds 0 1 2              # means over several
    python -m benchmarks.run --sets tetrode --sorters accm lupin --no-write
    python -m benchmarks.run --rows rows.jsonl          # goes on where it was stopped

Each sort runs in a process of its own (``benchmarks.worker``).
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import date
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np

from accm_core.evaluate import evaluate
from accm_core.simulate import simulate, write_simulation
from benchmarks.ablations import ABLATIONS
from benchmarks.peers import PEERS, find_version, is_installed
from benchmarks.picture import Dot, draw_accuracy_speed
from benchmarks.table import DONE, failure_lines, set_lines, summarise, summary_lines, write_section

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
PICTURE = "accuracy_speed.svg"  # beside the results
SORTERS = ("accm", *ABLATIONS, "pca-kmeans", *PEERS)
COMPILED = ("accm", "accm-no-overlap-revision")  # between them they call all that numba compiles
MAX_REASON, SHOWN_LINES = 120, 20  # letters of why a sort failed; last lines of its output that are shown
SETS: dict[str, dict] = {
    "tetrode": {"probe": "tetrode", "num_units": 8, "duration_s": 120.0},
    "wire-easy": {"probe": "mono", "noise_level": 0.05, "max_similarity": 0.9, "duration_s": 60.0},
    "wire-hard": {
        "probe": "mono",
        "noise_level": 0.15,
        "min_similarity": 0.9,
        "max_similarity": 0.97,
        "duration_s": 60.0,
    },
    "poly32-synchrony": {"probe": "poly32", "num_units": 16, "synchrony": 0.3, "duration_s": 120.0},
    "neuropixels64": {"probe": "neuropixels", "num_units": 30, "duration_s": 120.0},
    "noise-alone": {"probe": "poly32", "num_units": 0, "duration_s": 60.0},
    "tetrode-drift": {"probe": "tetrode", "num_units": 8, "drift_um": 40.0, "duration_s": 300.0},
    "linear16-drift": {
        "probe": "linear",
        "num_channels": 16,
        "pitch_um": 50.0,
        "num_units": 8,
        "drift_um": 40.0,
        "drift_period_s": 60.0,
        "duration_s": 120.0,
    },
    "neuropixels64-drift": {
        "probe": "neuropixels",
        "num_units": 30,
        "drift_um": 40.0,
        "drift_period_s": 60.0,
        "duration_s": 120.0,
    },
}
CORRECTABLE = ("linear16-drift", "neuropixels64-drift")  # others are told to; on four channels none can
WHAT = {
    "tetrode": "tetrode, 8 units, a fifth of them bursting",
    "wire-easy": "one wire, 3 units of equal peak, noise 0.05 of the peak",
    "wire-hard": "one wire, 3 alike units of equal peak (cosine from 0.9), noise 0.15 of the peak",
    "poly32-synchrony": "32 channels, 16 units, 30 % of the spikes with a partner within ±0.5 ms",
    "neuropixels64": "64 channels of a Neuropixels 1.0, 30 units",
    "noise-alone": "32 channels, background cells and noise, no unit",
    "tetrode-drift": "tetrode, 8 units, tissue that moves by 40 µm in a minute",
    "linear16-drift": "16 channels in a row, 50 µm apart, 8 units, tissue that moves by 40 µm in 30 s",
    "neuropixels64-drift": "64 channels of a Neuropixels 1.0, 30 units, tissue that moves by 40 µm in 30 s",
}
HOW = """- accuracy: TP / (TP + FP + FN), mean over the true units; spikes match within 0.4 ms, units one to
  one (SpikeInterface's comparison). Well detected: an accuracy of at least 0.8. False: a found unit that
  matches neither a true one nor one of the cells too small to count on that make the background.
  Redundant: a found unit that shares a true unit with a better one. Background: found units that match
  one of those cells.
- overlapping: recall of the true spikes that another unit within 100 µm fires within 1 ms of; isolated:
  recall of the others.
- speed: seconds recorded per second of sorting (reading the NWB file included, imports and writing not). What
  accm compiles and keeps was compiled before.
- CPU: seconds of all cores together per second recorded; hardly depends on what else the machine does.
- peak MiB: of the process, or of the largest one it started.
- First table, over the sets with units in still tissue, second table, over those that drift: accuracy and
  recalls are means, speed and CPU geometric means, units sums, memory the largest. A sort that failed has
  found nothing; its time is left out.
- pca-kmeans: our detection and snippets, then PCA and k-means of scikit-learn. It is **given the true number
  of units**, which the others have to find, and makes one cluster more, for what is no unit.
- Other sorters run at their defaults, with motion correction on linear16-drift and neuropixels64-drift alone:
  elsewhere nothing drifts, or there are too few channels for it.
- Means over the recordings of a set; in brackets least and largest accuracy where there are several."""


def main() -> None:
    options = parse_options()
    known = load_rows(options.rows)
    missing = [s for s in options.sorters if s in PEERS and not is_installed(s)]
    rows: list[dict] = []
    is_compiled = False
    with tempfile.TemporaryDirectory() as folder:
        for name, seed in product(options.sets, options.seeds):
            asked = [(name, sorter, seed) for sorter in options.sorters if worth_sorting(name, sorter)]
            rows += [known[key] for key in asked if key in known]
            wanted = [s for _, s, _ in asked if (name, s, seed) not in known and s not in missing]
            if not is_compiled and wanted:
                compile_ours(options.device, Path(folder))
                is_compiled = True
            for row in measure(name, seed, wanted, options.device, Path(folder)):
                print(json.dumps(row), flush=True)
                save_row(options.rows, row)
                rows.append(row)
    missing = [sorter for sorter in missing if not any(row["sorter"] == sorter for row in rows)]
    if options.write:
        write_section(options.results, make_section(rows, missing, options))
        dots = make_dots(rows, options.sorters)
        if dots:
            picture = options.results.with_name(PICTURE)
            picture.write_text(draw_accuracy_speed(dots, machine(options.device)))
        print(f"wrote {options.results.name} and {PICTURE}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.split("\n")[0])
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--sorters", nargs="+", choices=SORTERS, default=list(SORTERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="one recording of each set a seed")
    parser.add_argument(
        "--device", default="cpu", help="cpu, cuda or auto, for those that can (default: cpu)"
    )
    parser.add_argument(
        "--rows", type=Path, help="file of rows, JSON lines; what is in it is not measured again"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="file that gets the tables")
    parser.add_argument(
        "--no-write", dest="write", action="store_false", help="leave tables and picture as they are"
    )
    return parser.parse_args()


def worth_sorting(name: str, sorter: str) -> bool:
    """Each ablation where what it takes away is used; the baseline where there is a unit to be told of."""
    if sorter in ABLATIONS:
        return drifts(name) == ABLATIONS[sorter].in_drift
    return not (sorter == "pca-kmeans" and SETS[name].get("num_units") == 0)


def drifts(name: str) -> bool:
    return "drift_um" in SETS[name]


def load_rows(path: Path | None) -> dict[tuple[str, str, int], dict]:
    if path is None or not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {(row["set"], row["sorter"], row["seed"]): row for row in rows}


def save_row(path: Path | None, row: dict) -> None:
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def compile_ours(device: str, folder: Path) -> None:
    """Sort a short session, so that no measurement holds what numba compiles and keeps."""
    recording, truth = simulate(seed=0, duration_s=20.0)
    session = folder / "session.nwb"
    truth_file = write_simulation(session, recording, truth, overwrite=True)
    for sorter in COMPILED:
        sort_and_score(sorter, session, truth_file, len(truth.unit_names), 0, device, correct_drift=False)


def measure(name: str, seed: int, sorters: Sequence[str], device: str, folder: Path) -> Iterator[dict]:
    """Simulate a recording and sort it with each sorter."""
    if not sorters:
        return
    recording, truth = simulate(seed=seed, **SETS[name])
    session = folder / "session.nwb"
    truth_file = write_simulation(session, recording, truth, overwrite=True)
    num_units = len(truth.unit_names)
    for sorter in sorters:
        row = {"set": name, "sorter": sorter, "seed": seed, "true_units": num_units}
        row |= {"commit": commit(), "machine": machine(device)}
        if sorter in PEERS:
            row["version"] = find_version(sorter)
        row |= sort_and_score(
            sorter, session, truth_file, num_units, seed, device, correct_drift=name in CORRECTABLE
        )
        if row["status"] == DONE:
            duration = SETS[name]["duration_s"]
            row["times_real_time"] = round(duration / row["seconds"], 2)
            row["cpu_share"] = round(row["cpu_seconds"] / duration, 4)
        yield row


def sort_and_score(
    sorter: str,
    session: Path,
    truth_file: Path,
    num_units: int,
    seed: int,
    device: str,
    *,
    correct_drift: bool,
) -> dict[str, Any]:
    """Sort in a process of its own, whose words are shown only when it fails."""
    output = session.with_suffix(".npz")
    output.unlink(missing_ok=True)
    arguments = map(str, (sorter, session, num_units, seed, device, int(correct_drift), output))
    log = session.with_suffix(".log")
    with log.open("w") as words:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.worker", *arguments],
            cwd=ROOT,
            stdout=words,
            stderr=words,
            check=False,
        )
    shutil.rmtree(session.with_suffix(".peer"), ignore_errors=True)
    if done.returncode != 0:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        print("\n".join(lines[-SHOWN_LINES:]), file=sys.stderr)
        reason = lines[-1].strip() if lines else f"exit status {done.returncode}"
        return {"status": f"failed: {reason.replace(str(session.parent), '...')[:MAX_REASON]}"}
    with np.load(output) as saved:
        costs = {
            "seconds": round(float(saved["seconds"]), 2),
            "cpu_seconds": round(float(saved["cpu_seconds"]), 2),
            "peak_MiB": round(float(saved["peak_mib"])),
        }
        trains = {name.removeprefix("unit "): saved[name] for name in saved.files if name.startswith("unit ")}
    scores = evaluate(trains, truth_file).to_dict()
    kept = {k: v for k, v in scores.items() if k not in ("units", "false_names", "redundant_names")}
    return {"status": DONE} | costs | kept


def make_section(rows: Sequence[dict], missing: Sequence[str], options: argparse.Namespace) -> str:
    seeds = " ".join(map(str, options.seeds))
    asked = {
        "--sets": options.sets,
        "--sorters": options.sorters,
        "--seeds": seeds.split(),
        "--device": [options.device],
    }
    command = " ".join(f"{flag} {' '.join(values)}" for flag, values in asked.items())
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    machines = "; ".join(dict.fromkeys(row["machine"] for row in rows))
    versions = dict.fromkeys(row["version"] for row in rows if "version" in row)
    still, moving = ([row for row in rows if drifts(row["set"]) == moves] for moves in (False, True))
    summaries = [(*summary_lines(part, options.sorters, missing), "") for part in (still, moving) if part]
    return "\n".join(
        [
            f"Commit {commits}, {date.today().isoformat()}, {machines}. Seeds: {seeds}.",
            f"Other sorters: {', '.join(versions)}." if versions else "",
            f"Command: `python -m benchmarks.run {command}`",
            "",
            *chain(*summaries),
            *set_lines(rows, options.sets, options.sorters),
            "",
            *failure_lines(rows),
            *(f"- {name}: {WHAT[name]}, {SETS[name]['duration_s']:g} s" for name in options.sets),
            *(f"- {name}: {ABLATIONS[name].what}" for name in options.sorters if name in ABLATIONS),
            HOW,
        ]
    )


def make_dots(rows: Sequence[dict], sorters: Sequence[str]) -> list[Dot]:
    """A dot for each sorter that sorted a set with units in still tissue."""
    rows = [row for row in rows if not drifts(row["set"])]
    dots = []
    for sorter in sorters:
        if any(row["sorter"] == sorter and row["true_units"] and row["status"] == DONE for row in rows):
            summary = summarise(rows, sorter)
            kind = "ours" if sorter == "accm" else "ablation" if sorter in ABLATIONS else "peer"
            kind = "baseline" if sorter == "pca-kmeans" else kind
            dots.append(Dot(sorter, summary.accuracy, summary.speed, kind))
    return dots


def commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "accm_core", "benchmarks/*.py")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")


def machine(device: str) -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())
        model = found.group(1).strip() if found else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{cores} cores of {model}, Python {platform.python_version()}"
    if device != "cpu":
        import torch

        if torch.cuda.is_available():
            text += f", {torch.cuda.get_device_name()}"
    return text


if __name__ == "__main__":
    main()
