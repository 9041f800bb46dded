"""The simple baseline: PCA and k-means on the snippets that our own detection gives.

It is told the true number of units, which no sorter knows, and gets one cluster more for what is no unit.
"""

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from accm_core.params import SorterParams
from accm_core.signal.chunks import cut_blocks
from accm_core.signal.geometry import channel_distances, nearest_channels
from accm_core.signal.matched import measure_matched_filter
from accm_core.signal.peaks import collect_snippets
from accm_core.signal.preprocess import measure_preprocessor
from accm_core.types import Recording

COMPONENTS = 3  # of each channel, as in the classic feature spaces
NUM_CHANNELS = 8  # nearest ones, in a snippet
RADIUS_UM = 100.0
RESTARTS = 3
MAX_SPIKES = 10_000_000  # all of them


def sort_pca_kmeans(recording: Recording, num_units: int, seed: int) -> dict[str, np.ndarray]:
    """Sort a recording of one shank: spike times (s) by unit."""
    params = SorterParams()
    blocks = cut_blocks(recording.segments, recording.sampling_frequency)
    distances = channel_distances(recording.channel_locations, recording.has_geometry)
    preprocessor = measure_preprocessor(recording, np.arange(len(distances)), distances, params.signal)
    used = preprocessor.channels
    distances = distances[np.ix_(used, used)]
    collected = collect_snippets(
        recording,
        preprocessor,
        measure_matched_filter(recording, preprocessor, distances, params.detect, params.run),
        blocks,
        distances,
        nearest_channels(distances, NUM_CHANNELS, RADIUS_UM),
        recording.channel_locations[used, 1],
        detect=params.detect,
        snippet=params.snippet,
        max_spikes=MAX_SPIKES,
        seed=seed,
        run=params.run,
    )
    snippets = collected.snippets
    num_clusters = num_units + 1  # without a place for overlaps and noise, k-means merges two units
    if num_units == 0 or len(snippets) < num_clusters:
        return {}
    features = _features(snippets.waveforms, snippets.channels, len(used), seed)
    labels = KMeans(num_clusters, n_init=RESTARTS, random_state=seed).fit_predict(features)
    times = recording.sample_to_time(snippets.peaks.sample_index)
    return {str(k): np.sort(times[labels == k]) for k in range(num_clusters)}


def _features(waveforms: np.ndarray, channels: np.ndarray, num_channels: int, seed: int) -> np.ndarray:
    """Principal components of each channel's waveform, put at that channel: (n_spikes, 3 n_channels)."""
    num_spikes, num_samples, _ = waveforms.shape
    rows, slots = np.nonzero(channels >= 0)
    single = waveforms[rows, :, slots]
    # waveforms of the channels that spikes are largest on decide the components
    largest = np.abs(waveforms).max(axis=1).argmax(axis=1)
    main = waveforms[np.arange(num_spikes), :, largest]
    pca = PCA(min(COMPONENTS, num_samples), random_state=seed).fit(main)
    features = np.zeros((num_spikes, num_channels, pca.n_components_), np.float32)
    # not centred: a channel that a spike is not seen on is at zero
    features[rows, channels[rows, slots]] = single @ pca.components_.T
    return features.reshape(num_spikes, -1)
