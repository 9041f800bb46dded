"""Sort simulated recordings with accm and with a simple baseline, score both, and write RESULTS.md.

    python -m benchmarks.run                       # everything, one seed
    python -m benchmarks.run --seeds 0 1 2         # means over several recordings of each kind
    python -m benchmarks.run --sets tetrode --sorters accm --no-write

Each sort runs in a process of its own, so that its peak memory is its own.
"""

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that `python benchmarks/run.py` works too

from accm_core.evaluate import evaluate  # noqa: E402
from accm_core.io.nwb_read import read_nwb  # noqa: E402
from accm_core.simulate import simulate, write_simulation  # noqa: E402

RESULTS = ROOT / "benchmarks" / "RESULTS.md"
BEGIN, END = "<!-- simulated: begin -->", "<!-- simulated: end -->"
SORTERS = ("accm", "pca-kmeans")
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
}
WHAT = {
    "tetrode": "tetrode, 8 units, a fifth of them bursting",
    "wire-easy": "one wire, 3 units of equal peak, noise 0.05 of the peak",
    "wire-hard": "one wire, 3 alike units of equal peak (cosine from 0.9), noise 0.15 of the peak",
    "poly32-synchrony": "32 channels, 16 units, 30 % of the spikes with a partner within ±0.5 ms",
    "neuropixels64": "64 channels of a Neuropixels 1.0, 30 units",
    "noise-alone": "32 channels, background cells and noise, no unit",
}
INTRODUCTION = """# Benchmarks

How well and how fast simulated recordings are sorted. The table is written by `python -m benchmarks.run`.
"""
HOW = """- accuracy: TP / (TP + FP + FN), mean over the true units; spikes match within 0.4 ms, units one to
  one (SpikeInterface's comparison). Well detected: an accuracy of at least 0.8. False: a found unit that
  matches no true one. Redundant: a found unit that shares a true unit with a better one.
- overlapping: recall of the true spikes that another unit within 100 µm fires within 1 ms of; isolated:
  recall of the others.
- speed: seconds recorded per second of sorting (reading the NWB file included, imports and writing not).
- pca-kmeans: our detection and snippets, then PCA and k-means of scikit-learn. It is **given the true number
  of units**, which accm has to find, and makes one cluster more, for what is no unit.
- Means over the recordings of a set; in brackets least and largest accuracy where there are several."""


def main() -> None:
    options = parse_options()
    if options.worker is not None:
        work(*options.worker, options.device)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.sets:
            for seed in options.seeds:
                recording, truth = simulate(seed=seed, **SETS[name])
                session = Path(folder) / "session.nwb"
                truth_file = write_simulation(session, recording, truth, overwrite=True)
                for sorter in options.sorters:
                    if sorter == "pca-kmeans" and not truth.unit_names:
                        continue  # told that there is no unit, it finds none
                    row = run_one(sorter, session, truth_file, len(truth.unit_names), seed, options.device)
                    rows.append(row | {"set": name, "seed": seed, "times_real_time": row_speed(row, name)})
                    print(json.dumps(rows[-1]), flush=True)
    if options.write:
        write_results(options.results, make_section(rows, options))
        print(f"wrote {options.results.name}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.split("\n")[0])
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--sorters", nargs="+", choices=SORTERS, default=list(SORTERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="one recording of each set a seed")
    parser.add_argument("--device", default="cpu", help="for accm: cpu, cuda or auto (default: cpu)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file that gets the table")
    parser.add_argument("--no-write", dest="write", action="store_false", help="leave that file as it is")
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)  # sorter, session, units, seed, output
    return parser.parse_args()


def run_one(
    sorter: str, session: Path, truth_file: Path, num_units: int, seed: int, device: str
) -> dict[str, float | str]:
    output = session.with_suffix(".npz")
    command = [sys.executable, str(Path(__file__).resolve()), "--device", device, "--worker"]
    subprocess.run(
        [*command, sorter, str(session), str(num_units), str(seed), str(output)], check=True, cwd=ROOT
    )
    with np.load(output) as saved:
        seconds, peak_mib = float(saved["seconds"]), float(saved["peak_mib"])
        trains = {name.removeprefix("unit "): saved[name] for name in saved.files if name.startswith("unit ")}
    scores = evaluate(trains, truth_file).to_dict()
    kept = {k: v for k, v in scores.items() if k not in ("units", "false_names", "redundant_names")}
    return {"sorter": sorter, "seconds": round(seconds, 2), "peak_MiB": round(peak_mib)} | kept


def row_speed(row: dict, name: str) -> float:
    return round(SETS[name]["duration_s"] / row["seconds"], 2)


def work(sorter: str, session: str, num_units: str, seed: str, output: str, device: str) -> None:
    """Sort in this process, and save the trains, the time and the peak memory."""
    if sorter == "accm":
        from accm_core.pipeline import sort
    else:
        from benchmarks.baseline import sort_pca_kmeans
    start = time.perf_counter()
    with read_nwb(session) as recording:
        if sorter == "accm":
            sorting = sort(recording, device=device, seed=int(seed))
            trains = {
                str(unit_id): sorting.spike_times[sorting.spikes_of(row)]
                for row, unit_id in enumerate(sorting.unit_ids)
            }
        else:
            trains = sort_pca_kmeans(recording, int(num_units), int(seed))
    seconds = time.perf_counter() - start
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there, in KiB elsewhere
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    np.savez(output, seconds=seconds, peak_mib=peak_mib, **{f"unit {k}": v for k, v in trains.items()})


def make_section(rows: list[dict], options: argparse.Namespace) -> str:
    names = [name for name in SETS if name in options.sets]
    seeds = " ".join(map(str, options.seeds))
    asked = {
        "--sets": names,
        "--sorters": options.sorters,
        "--seeds": seeds.split(),
        "--device": [options.device],
    }
    command = "python -m benchmarks.run " + " ".join(
        f"{flag} {' '.join(values)}" for flag, values in asked.items()
    )
    lines = [
        f"Commit {commit()}, {date.today().isoformat()}, {machine(options.device)}. Seeds: {seeds}.",
        f"Command: `{command}`",
        "",
        "| set | sorter | accuracy | precision | recall | well detected | false | redundant "
        "| overlapping | isolated | times real time | peak MiB |",
        "| --- | --- " + "| ---: " * 10 + "|",
    ]
    for name in names:
        for sorter in options.sorters:
            mine = [row for row in rows if (row["set"], row["sorter"]) == (name, sorter)]
            if mine:
                lines.append(table_row(name, sorter, mine))
    lines += ["", *(f"- {name}: {WHAT[name]}, {SETS[name]['duration_s']:g} s" for name in names), HOW]
    return "\n".join(lines)


def table_row(name: str, sorter: str, rows: list[dict]) -> str:
    def mean(key: str, digits: int = 1, scale: float = 1.0) -> str:
        values = [row[key] for row in rows if row[key] is not None]
        return f"{scale * np.mean(values):.{digits}f}" if values else "-"

    accuracy = mean("accuracy", 1, 100.0)
    values = [row["accuracy"] for row in rows if row["accuracy"] is not None]
    if len(values) > 1:
        accuracy += f" ({100 * min(values):.1f} to {100 * max(values):.1f})"
    cells = [
        name,
        sorter,
        accuracy,
        mean("precision", 1, 100.0),
        mean("recall", 1, 100.0),
        f"{mean('well_detected')} of {mean('true_units', 0)}",
        mean("false_units"),
        mean("redundant_units"),
        mean("overlap_recall", 1, 100.0),
        mean("isolated_recall", 1, 100.0),
        mean("times_real_time"),
        mean("peak_MiB", 0),
    ]
    return "| " + " | ".join(cells) + " |"


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


def write_results(path: Path, section: str) -> None:
    """Put the section between its markers; what else stands in the file stays."""
    text = path.read_text() if path.exists() else f"{INTRODUCTION}\n{BEGIN}\n{END}\n"
    if BEGIN not in text or END not in text:
        text = f"{text.rstrip()}\n\n{BEGIN}\n{END}\n"
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    path.write_text(f"{before}{BEGIN}\n{section}\n{END}{after}")


if __name__ == "__main__":
    main()
