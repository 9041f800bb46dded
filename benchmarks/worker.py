"""One sort in a process of its own, so that its time and its peak memory are its own.

``python -m benchmarks.worker SORTER SESSION NUM_UNITS SEED DEVICE DRIFT OUTPUT`` is what ``benchmarks.run``
starts; with DRIFT 1 other sorters are to correct it (ours finds out by itself).
"""

import os
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from accm_core.io.nwb_read import read_nwb
from accm_core.types import Recording, Sorting
from benchmarks.peers import PEERS, prepare_peer

Trains = dict[str, np.ndarray]


def main() -> None:
    sorter, session, num_units, seed, device, drift, output = sys.argv[1:]
    sort = prepare(
        sorter, num_units=int(num_units), seed=int(seed), device=device, correct_drift=bool(int(drift))
    )
    start, cpu_start = time.perf_counter(), cpu_seconds()
    trains = sort(Path(session))
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu_start
    named = {f"unit {k}": v for k, v in trains.items()}
    np.savez(output, seconds=seconds, cpu_seconds=cpu, peak_mib=peak_mib(), **named)


def cpu_seconds() -> float:
    """Seconds of all cores used by this process and those it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def peak_mib() -> float:
    """Largest memory of this process, or of the largest that it has waited for."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there, in KiB elsewhere
    own, others = (
        resource.getrusage(who).ru_maxrss / unit for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss begins at what the process held that started this one
        own = int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**10
    return max(own, others)


def prepare(
    sorter: str, *, num_units: int, seed: int, device: str, correct_drift: bool
) -> Callable[[Path], Trains]:
    """Import what the sorter needs; what is returned sorts a session into spike times (s) by unit."""
    if sorter in PEERS:
        return prepare_peer(sorter, device=device, seed=seed, correct_drift=correct_drift)
    if sorter == "pca-kmeans":
        from benchmarks.baseline import sort_pca_kmeans

        return _reading(lambda recording: sort_pca_kmeans(recording, num_units, seed))
    if sorter == "accm":
        from accm_core.pipeline import sort

        return _reading(lambda recording: _trains(sort(recording, device=device, seed=seed)))
    from benchmarks.ablations import sort_ablation

    return _reading(lambda recording: _trains(sort_ablation(sorter, recording, device=device, seed=seed)))


def _reading(sort: Callable[[Recording], Trains]) -> Callable[[Path], Trains]:
    def read_and_sort(session: Path) -> Trains:
        with read_nwb(session) as recording:
            return sort(recording)

    return read_and_sort


def _trains(sorting: Sorting) -> Trains:
    return {
        str(unit_id): sorting.spike_times[sorting.spikes_of(row)]
        for row, unit_id in enumerate(sorting.unit_ids)
    }


if __name__ == "__main__":
    main()
