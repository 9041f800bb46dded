"""Whether the contrastive embedding separates units better than principal components of the same snippets.

``python -m benchmarks.embedding`` simulates a tetrode; ``--session S.nwb --truth T`` takes a session with
known spikes (truth as NWB Units, or .npz with sample_index and unit_index). Peaks are detected, snippets
cut, and each is given the true unit that fired within 0.4 ms. Then the same clustering, and a Gaussian
mixture told the number of units, are run on both.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from accm_core import read_nwb
from accm_core.io.nwb_units import read_spike_trains
from accm_core.learning.adapt import adapt_encoder
from accm_core.learning.encoder import SnippetWindow, embed_snippets, fit_encoder
from accm_core.learning.lessons import read_pretrained
from accm_core.params import SorterParams
from accm_core.signal.survey import survey_shank
from accm_core.simulate import simulate
from accm_core.simulation.nwb import truth_path, write_simulation
from accm_core.sorting.cluster import cluster_neighborhoods

MATCH_S = 0.4e-3
PCA_DIMS = (3, 5, 8)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embedding")
    parser.add_argument("--session", type=Path)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        session, truth = options.session, options.truth
        if session is None:
            session = Path(folder) / "session.nwb"
            recording, units = simulate(seed=0, probe="tetrode", num_units=8, duration_s=180.0)
            write_simulation(session, recording, units)
            truth = truth_path(session)
        print("features          accuracy of our clustering (clusters found)   adjusted Rand index, mixture")
        for seed in options.seeds:
            compare(session, truth, seed)


def compare(session: Path, truth: Path, seed: int) -> None:
    params = SorterParams()
    with read_nwb(session) as recording:
        fs = recording.sampling_frequency
        survey = survey_shank(
            recording,
            np.arange(len(recording.channel_ids)),
            params,
            seed=seed,
            report=lambda stage: lambda share: None,
        )
        snippets, noise = survey.snippets, survey.noise
        times = recording.sample_to_time(snippets.peaks.sample_index)
    labels = label_peaks(times, load_trains(truth, fs))
    _, num_samples, num_channels = snippets.waveforms.shape
    window, shipped = SnippetWindow(snippets.num_before, num_samples, fs), read_pretrained()
    fitted = fit_encoder(shipped.encoder, shipped.window, window, num_channels, params.learn.num_dims)
    device, features = torch.device("cpu"), {}
    for name, start in {"shipped start, 8": fitted, "random start, 8": None}.items():
        encoder = adapt_encoder(
            start, snippets.waveforms, noise, params.learn, fs, device=device, seed=seed
        ).encoder
        features[name] = embed_snippets(encoder, snippets.waveforms, device)
    flat = snippets.waveforms.reshape(len(snippets), -1)
    for dims in PCA_DIMS:
        features[f"PCA, {dims}"] = PCA(dims, random_state=seed).fit_transform(flat).astype(np.float32)
    for name, points in features.items():
        found, _ = cluster_neighborhoods(
            points, snippets.peaks.channel_index, survey.neighborhoods, params.cluster, seed=seed
        )
        known = labels >= 0
        mixture = GaussianMixture(labels.max() + 1, n_init=3, random_state=seed).fit(points[known])
        rand = adjusted_rand_score(labels[known], mixture.predict(points[known]))
        print(
            f"{name:16s}  {mean_accuracy(labels, found):.3f} ({found.max() + 1})   {rand:.3f}   seed {seed}"
        )


def load_trains(truth: Path, fs: float) -> list[np.ndarray]:
    if truth.suffix == ".npz":
        arrays = np.load(truth)
        return [
            arrays["sample_index"][arrays["unit_index"] == u] / fs for u in np.unique(arrays["unit_index"])
        ]
    return list(read_spike_trains(truth).values())


def label_peaks(times: np.ndarray, trains: list[np.ndarray]) -> np.ndarray:
    """True unit nearest in time to each peak, -1 where none fired within 0.4 ms."""
    labels = np.full(len(times), -1)
    nearest = np.full(len(times), MATCH_S)
    for unit, train in enumerate(trains):
        after = np.clip(np.searchsorted(train, times), 1, len(train) - 1)
        apart = np.minimum(np.abs(train[after] - times), np.abs(train[after - 1] - times))
        labels[apart < nearest] = unit
        nearest = np.minimum(nearest, apart)
    return labels


def mean_accuracy(labels: np.ndarray, found: np.ndarray) -> float:
    """Mean over true units of TP / (TP + FP + FN), clusters matched one to one, over the detected peaks."""
    units, clusters = labels.max() + 1, found.max() + 1
    both = np.zeros((units, clusters))
    known = (labels >= 0) & (found >= 0)
    np.add.at(both, (labels[known], found[known]), 1)
    total = np.bincount(labels[labels >= 0], minlength=units)[:, None] + np.bincount(
        found[found >= 0], minlength=clusters
    )
    accuracy = both / np.maximum(total - both, 1)
    rows, columns = linear_sum_assignment(-accuracy)
    return float(accuracy[rows, columns].sum() / units)


if __name__ == "__main__":
    main()
