"""How many spikes must be labelled: fine-tuning on a share of the true labels, scored on the rest.

``python -m benchmarks.finetune`` simulates a wire and a tetrode (several seeds). Given the true times of the
spikes that were not labelled, which unit fired? Beside it a linear discriminant on the same raw snippets, and
how far the probabilities are from the shares that are right.
"""

import argparse

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from accm_core.learning.classify import classify_spikes, place_heads
from accm_core.learning.encoder import SnippetWindow
from accm_core.learning.finetune import finetune
from accm_core.params import SorterParams
from accm_core.signal.survey import survey_shank
from accm_core.simulate import simulate
from accm_core.types import ArrayRecording
from benchmarks.heads import CPU, SETS, is_alone

SHARES = (0.02, 0.1, 0.5)
MIN_DECILE = 500


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.finetune")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES))
    options = parser.parse_args()
    print(
        "| set | seed | labelled | units | isolated % | overlapping % | "
        "discriminant: isolated, overlapping % | worst decile |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in options.sets:
        for seed in options.seeds:
            for share in options.shares:
                print(f"| {name} | {seed} | {share:.0%} | {measure(name, seed, share)} |", flush=True)


def measure(name: str, seed: int, share: float) -> str:
    simulated, truth = simulate(seed=seed, **SETS[name])
    fs, params = simulated.sampling_frequency, SorterParams()
    recording = ArrayRecording(
        traces=simulated.get_traces(0, simulated.segments[0].stop),
        sampling_frequency=fs,
        channel_locations=simulated.channel_locations,
    )
    samples, unit = truth.sample_index, truth.unit_index
    labelled = np.random.default_rng(seed).random(len(samples)) < share
    labels = {str(k): samples[labelled & (unit == k)] / fs for k in range(len(truth.unit_names))}
    model = finetune(recording, labels, params, device="cpu", seed=seed)
    survey = survey_shank(
        recording,
        np.arange(len(recording.channel_ids)),
        params,
        seed=0,
        report=lambda stage: lambda fraction: None,
    )
    preprocessor = survey.preprocessor
    window = SnippetWindow(survey.snippets.num_before, survey.snippets.waveforms.shape[1], fs)
    placed = place_heads(model, recording.channel_ids, window, CPU)
    probability = classify_spikes(recording, preprocessor, placed, samples, run=params.run, device=CPU)
    names = np.array([int(known) for known in placed.names])
    scored = ~labelled & np.isin(unit, names)
    alone = is_alone(samples, fs)
    ours = names[probability.argmax(axis=1)] == unit
    theirs = (
        classify_linearly(recording, preprocessor, samples, unit, labelled & np.isin(unit, names)) == unit
    )
    each = [100 * right[scored & rows].mean() for right in (ours, theirs) for rows in (alone, ~alone)]
    gap = worst_decile(probability[scored], names[None] == unit[scored][:, None])
    return (
        f"{len(names)} of {len(truth.unit_names)} | {each[0]:.2f} | {each[1]:.2f} | "
        f"{each[2]:.2f}, {each[3]:.2f} | {gap:.3f}"
    )


def classify_linearly(recording, preprocessor, samples, unit, labelled) -> np.ndarray:
    """Linear discriminant with a shrunk covariance on whitened snippets of all channels."""
    traces = preprocessor.whiten(preprocessor.bandpass.apply(recording.traces[:, preprocessor.channels]))
    inside = np.clip(samples, 21, len(traces) - 40)
    flat = traces[inside[:, None] + np.arange(-21, 39)].reshape(len(samples), -1)
    return (
        LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        .fit(flat[labelled], unit[labelled])
        .predict(flat)
    )


def worst_decile(probability: np.ndarray, fired: np.ndarray) -> float:
    """Largest gap between probability and share that is right, over deciles of ``MIN_DECILE`` answers."""
    decile = np.clip((10 * probability).astype(int), 0, 9)
    gaps = [
        abs(probability[decile == k].mean() - fired[decile == k].mean())
        for k in range(10)
        if (decile == k).sum() >= MIN_DECILE
    ]
    return float(max(gaps))


if __name__ == "__main__":
    main()
