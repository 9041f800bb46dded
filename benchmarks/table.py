"""What was measured, as text for RESULTS.md: rows to a summary by sorter and a table by set."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BEGIN, END = "<!-- simulated: begin -->", "<!-- simulated: end -->"
INTRODUCTION = """# Benchmarks

How well and how fast simulated recordings are sorted. The table is written by `python -m benchmarks.run`.
"""
DONE = "done"
HEAD = (
    "| set | sorter | accuracy | precision | recall | well detected | false | redundant "
    "| background | overlapping | isolated | times real time | peak MiB |"
)
SUMMARY_HEAD = (
    "| sorter | accuracy | well detected | false + redundant | overlapping | isolated "
    "| times real time | CPU | peak MiB |"
)


@dataclass(frozen=True)
class Summary:
    """A sorter over all sets. A sort that failed has found nothing; its time does not count.

    Attributes
    ----------
    sorter : str
    accuracy, overlap_recall, isolated_recall : float
        Means over the sets with units.
    well_detected, true_units : float
        Sums over the sets with units.
    too_many : float
        False and redundant units, sum over the sets with units.
    speed, cpu_share : float
        Times real time, and CPU time per recorded time; geometric means over the sets with units, NaN when
        all failed.
    peak_mib : float
        Largest.
    """

    sorter: str
    accuracy: float
    overlap_recall: float
    isolated_recall: float
    well_detected: float
    true_units: float
    too_many: float
    speed: float
    cpu_share: float
    peak_mib: float


def summarise(rows: Sequence[dict], sorter: str) -> Summary:
    """Sum up one sorter's rows; recordings of a set first, sets then."""
    own = [row for row in rows if row["sorter"] == sorter]
    by_set = [[row for row in own if row["set"] == name] for name in dict.fromkeys(row["set"] for row in own)]
    with_units = [group for group in by_set if group[0]["true_units"] > 0]

    def means(key: str, groups: Iterable[list[dict]]) -> list[float]:
        return [float(np.mean([row.get(key) or 0.0 for row in group])) for group in groups]

    done = [row for group in with_units for row in group if row["status"] == DONE]

    def geometric_mean(key: str) -> float:
        return float(np.exp(np.mean(np.log([row[key] for row in done])))) if done else float("nan")

    return Summary(
        sorter,
        *(
            float(np.mean(means(key, with_units)))
            for key in ("accuracy", "overlap_recall", "isolated_recall")
        ),
        *(sum(means(key, with_units)) for key in ("well_detected", "true_units")),
        too_many=sum(means("false_units", with_units)) + sum(means("redundant_units", with_units)),
        speed=geometric_mean("times_real_time"),
        cpu_share=geometric_mean("cpu_share"),
        peak_mib=max((row["peak_MiB"] for row in own if row["status"] == DONE), default=float("nan")),
    )


def summary_lines(rows: Sequence[dict], sorters: Sequence[str], missing: Sequence[str]) -> list[str]:
    """Table with a line for each sorter."""
    lines = [SUMMARY_HEAD, "| --- " + "| ---: " * 8 + "|"]
    for sorter in sorters:
        if sorter in missing:
            lines.append(f"| {sorter} | not installed |" + " |" * 7)
        elif any(row["sorter"] == sorter for row in rows):
            lines.append(_summary_line(summarise(rows, sorter)))
    return lines


def _summary_line(summary: Summary) -> str:
    cells = [
        summary.sorter,
        f"{100 * summary.accuracy:.1f}",
        f"{summary.well_detected:.1f} of {summary.true_units:.0f}",
        f"{summary.too_many:.1f}",
        f"{100 * summary.overlap_recall:.1f}",
        f"{100 * summary.isolated_recall:.1f}",
        "-" if np.isnan(summary.speed) else f"{summary.speed:.1f}",
        "-" if np.isnan(summary.cpu_share) else f"{summary.cpu_share:.2f}",
        "-" if np.isnan(summary.peak_mib) else f"{summary.peak_mib:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def set_lines(rows: Sequence[dict], sets: Sequence[str], sorters: Sequence[str]) -> list[str]:
    """Table with a line for each set and sorter."""
    lines = [HEAD, "| --- | --- " + "| ---: " * 11 + "|"]
    for name in sets:
        for sorter in sorters:
            own = [row for row in rows if (row["set"], row["sorter"]) == (name, sorter)]
            if own:
                lines.append(_set_line(name, sorter, own))
    return lines


def _set_line(name: str, sorter: str, rows: Sequence[dict]) -> str:
    done = [row for row in rows if row["status"] == DONE]
    if not done:
        return f"| {name} | {sorter} | failed |" + " |" * 10

    def mean(key: str, digits: int = 1, scale: float = 1.0) -> str:
        values = [row[key] for row in done if row[key] is not None]
        return f"{scale * np.mean(values):.{digits}f}" if values else "-"

    accuracy = mean("accuracy", 1, 100.0)
    values = [row["accuracy"] for row in done if row["accuracy"] is not None]
    if len(values) > 1:
        accuracy += f" ({100 * min(values):.1f} to {100 * max(values):.1f})"
    if len(done) < len(rows):
        accuracy += f", {len(rows) - len(done)} of {len(rows)} failed"
    cells = [
        name,
        sorter,
        accuracy,
        mean("precision", 1, 100.0),
        mean("recall", 1, 100.0),
        f"{mean('well_detected')} of {mean('true_units', 0)}",
        mean("false_units"),
        mean("redundant_units"),
        mean("background_units"),
        mean("overlap_recall", 1, 100.0),
        mean("isolated_recall", 1, 100.0),
        mean("times_real_time"),
        mean("peak_MiB", 0),
    ]
    return "| " + " | ".join(cells) + " |"


def failure_lines(rows: Sequence[dict]) -> list[str]:
    """Why sorts failed, a line for each reason."""
    failed: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["status"] != DONE:
            failed.setdefault((row["sorter"], row["status"]), []).append(f"{row['set']} {row['seed']}")
    return [f"- {sorter} {why} ({', '.join(where)})" for (sorter, why), where in failed.items()]


def write_section(path: Path, section: str) -> None:
    """Put the section between its markers; what else stands in the file stays."""
    text = path.read_text() if path.exists() else f"{INTRODUCTION}\n{BEGIN}\n{END}\n"
    if BEGIN not in text or END not in text:
        text = f"{text.rstrip()}\n\n{BEGIN}\n{END}\n"
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    path.write_text(f"{before}{BEGIN}\n{section}\n{END}{after}")
