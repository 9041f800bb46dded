"""Whether spikes given a probability of p are right in that share: ``python -m benchmarks.calibration``.

Simulated recordings are sorted. A unit is compared with the true one it is most like, if it is like one
(accuracy of at least 0.5); its spikes are right when that one fired within 0.4 ms.
"""

import argparse

import numpy as np

from accm_core.pipeline import sort
from accm_core.simulate import simulate

MATCH_S = 0.4e-3
MIN_ACCURACY = 0.5
SETS = (
    {"probe": "tetrode", "num_units": 8, "duration_s": 120.0},
    {"probe": "mono", "noise_level": 0.15, "min_similarity": 0.9, "max_similarity": 0.97, "duration_s": 60.0},
    {"probe": "poly32", "num_units": 16, "synchrony": 0.3, "duration_s": 60.0},
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration")
    parser.add_argument("--seeds", nargs="+", type=int, default=[2, 3])
    seeds = parser.parse_args().seeds
    answers = [judge_spikes(changes, seed) for changes in SETS for seed in seeds]
    probability, right = (np.concatenate(part) for part in zip(*answers, strict=True))
    decile = np.minimum((10 * probability).astype(int), 9)
    print("| decile | spikes | mean probability | share that is right |\n| --- | --- | --- | --- |")
    for number in np.unique(decile):
        here = decile == number
        print(f"| {number} | {here.sum():,} | {probability[here].mean():.3f} | {right[here].mean():.3f} |")


def judge_spikes(changes: dict, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probability of each spike, and whether it is right."""
    recording, truth = simulate(seed=seed, **changes)
    sorting = sort(recording.in_memory(), seed=seed)
    tolerance = round(MATCH_S * recording.sampling_frequency)
    trains = [truth.sample_index[truth.unit_index == k] for k in range(len(truth.unit_names))]
    probability, right = [np.zeros(0)], [np.zeros(0, dtype=bool)]
    for unit in range(sorting.num_units):
        own = sorting.spikes_of(unit)
        hits = [find_hits(sorting.sample_index[own], train, tolerance) for train in trains]
        accuracy = [
            hit.sum() / (len(hit) + len(train) - hit.sum()) for hit, train in zip(hits, trains, strict=True)
        ]
        if max(accuracy) >= MIN_ACCURACY:
            probability.append(sorting.probability[own])
            right.append(hits[int(np.argmax(accuracy))])
    return np.concatenate(probability), np.concatenate(right)


def find_hits(samples: np.ndarray, train: np.ndarray, tolerance: int) -> np.ndarray:
    """Mask of the samples that a spike of the train is near."""
    after = np.clip(np.searchsorted(train, samples), 1, len(train) - 1)
    return np.minimum(np.abs(train[after] - samples), np.abs(train[after - 1] - samples)) <= tolerance


if __name__ == "__main__":
    main()
