"""Other spike sorters at their defaults, on the same NWB file.

``pip install --group benchmarks`` brings those of SpikeInterface, MountainSort 5 and SpikeSift. Kilosort 4
(GPL) is used when you installed it yourself.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Peer:
    """Packages it needs, the one whose version is told first; the option that has it correct drift."""

    packages: tuple[str, ...]
    correct_drift: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    takes_seed: bool = False


SPIKEINTERFACE = Peer(
    ("spikeinterface", "hdbscan", "networkx"), correct_drift="apply_motion_correction", takes_seed=True
)
PEERS = {
    "lupin": SPIKEINTERFACE,
    "spykingcircus2": SPIKEINTERFACE,
    "tridesclous2": SPIKEINTERFACE,
    "mountainsort5": Peer(("mountainsort5", "spikeinterface"), options={"scheme": "2"}),
    "kilosort4": Peer(("kilosort", "spikeinterface"), correct_drift="do_correction"),
    "spikesift": Peer(("spikesift", "spikeinterface")),
}


def is_installed(name: str) -> bool:
    return all(find_spec(package) is not None for package in PEERS[name].packages)


def find_version(name: str) -> str:
    package = PEERS[name].packages[0]
    return f"{package} {version(package)}"


def prepare_peer(
    name: str, *, device: str, seed: int, correct_drift: bool
) -> Callable[[Path], dict[str, np.ndarray]]:
    """Import what the peer needs; what is returned sorts a session into spike times (s) by unit.

    Looking for drift where nothing drifts costs time, and on few channels accuracy: it has to be asked for.
    """
    import spikeinterface.extractors as extractors
    import spikeinterface.sorters as sorters
    from spikeinterface import set_global_job_kwargs

    set_global_job_kwargs(n_jobs=-1, chunk_duration="1s", progress_bar=False)
    peer = PEERS[name]
    options = peer.options | ({"seed": seed} if peer.takes_seed else {})
    if peer.correct_drift:
        options[peer.correct_drift] = correct_drift
    if name == "kilosort4":
        options["torch_device"] = device

    def sort(session: Path) -> dict[str, np.ndarray]:
        recording = extractors.read_nwb_recording(session)
        folder = session.with_suffix(".peer")
        if name == "spikesift":
            found = _sort_spikesift(recording, folder)
        else:
            sorting = sorters.run_sorter(name, recording, folder=folder, **options)
            found = {str(unit): sorting.get_unit_spike_train(unit) for unit in sorting.unit_ids}
        return {unit: recording.sample_index_to_time(np.sort(train)) for unit, train in found.items()}

    return sort


def _sort_spikesift(recording: Any, folder: Path) -> dict[str, np.ndarray]:
    """SpikeSift reads a flat binary file: writing it is part of its time."""
    import spikesift
    from spikeinterface import write_binary_recording

    folder.mkdir()
    file_path = folder / "traces.raw"
    write_binary_recording(recording, file_paths=[file_path], dtype="int16")
    source = spikesift.Recording(
        binary_file=str(file_path),
        data_type="int16",
        probe_geometry=np.asarray(recording.get_channel_locations()[:, :2]),
        sampling_frequency=recording.get_sampling_frequency(),
    )
    found = spikesift.perform_spike_sorting(source, verbose=False)
    return {str(unit): np.asarray(found.spikes(unit), dtype=np.int64) for unit in found.cluster_ids()}
