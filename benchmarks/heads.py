"""Binary heads against one softmax, on the same encoder, examples and number of steps.

``python -m benchmarks.heads`` simulates wires and tetrodes (several seeds), fine-tunes on 10 % of the true
labels with each kind of heads, and scores which unit fired on the other 90 %, given the true times.
"""

import argparse
import time

import numpy as np
import torch

from accm_core.learning.classify import classify_spikes, place_heads
from accm_core.learning.encoder import SnippetWindow, one_thread
from accm_core.learning.finetune import finetune
from accm_core.params import SorterParams
from accm_core.signal.survey import survey_shank
from accm_core.simulate import simulate
from accm_core.types import ArrayRecording

SETS = {
    "wire": {"probe": "mono", "duration_s": 120.0, "num_units": 3},
    "alike": {"probe": "mono", "duration_s": 120.0, "num_units": 3, "min_similarity": 0.9},
    "tetrode": {"probe": "tetrode", "duration_s": 180.0, "num_units": 10, "rate_hz": 8.0},
}
LABELLED = 0.1
OVERLAP_MS = 1.0
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.heads")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    options = parser.parse_args()
    print(
        "| set | seed | heads | training s | heads alone, spikes/s | with the encoder, spikes/s | "
        "isolated % | overlapping % | most alike pair % | weights of heads |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in options.sets:
        for seed in options.seeds:
            recording, truth = simulate(seed=seed, **SETS[name])
            for kind in ("binary", "softmax"):
                print(f"| {name} | {seed} | {kind} | {measure(recording, truth, kind, seed)} |", flush=True)


def measure(recording, truth, kind: str, seed: int) -> str:
    fs = recording.sampling_frequency
    held = ArrayRecording(
        traces=recording.get_traces(0, recording.segments[0].stop),
        sampling_frequency=fs,
        channel_locations=recording.channel_locations,
    )
    params = SorterParams.model_validate({"heads": {"kind": kind}})
    samples, unit = truth.sample_index, truth.unit_index
    labelled = np.random.default_rng(seed).random(len(samples)) < LABELLED
    labels = {str(k): samples[labelled & (unit == k)] / fs for k in range(len(truth.unit_names))}
    started, training = {}, 0.0

    def on_progress(stage: str, fraction: float) -> None:
        nonlocal training
        started.setdefault(stage, time.process_time())
        if stage == "heads" and fraction == 1.0:
            training = time.process_time() - started["heads"]

    model = finetune(held, labels, params, device="cpu", seed=seed, on_progress=on_progress)
    survey = survey_shank(
        held,
        np.arange(len(held.channel_ids)),
        params,
        seed=0,
        report=lambda stage: lambda fraction: None,
    )
    window = SnippetWindow(survey.snippets.num_before, survey.snippets.waveforms.shape[1], fs)
    placed = place_heads(model, held.channel_ids, window, CPU)
    probability = classify_spikes(held, survey.preprocessor, placed, samples, run=params.run, device=CPU)
    names = np.array([int(name) for name in placed.names])
    right = names[probability.argmax(axis=1)] == unit
    scored = ~labelled & np.isin(unit, names)
    alone = is_alone(samples, fs)
    pair = most_alike(model, names)
    features, whole = time_answers(model)
    return " | ".join(
        [
            f"{training:.1f}",
            f"{features:,.0f}",
            f"{whole:,.0f}",
            *(f"{100 * right[scored & rows].mean():.2f}" for rows in (alone, ~alone, np.isin(unit, pair))),
            f"{sum(p.numel() for p in model.heads.parameters()):,}",
        ]
    )


def is_alone(samples: np.ndarray, fs: float) -> np.ndarray:
    gaps = np.diff(samples, prepend=-(10**9), append=10**12)
    reach = OVERLAP_MS * 1e-3 * fs
    return (gaps[1:] > reach) & (gaps[:-1] > reach)


def most_alike(model, names: np.ndarray) -> np.ndarray:
    """The two units whose templates have the largest cosine."""
    flat = torch.nn.functional.normalize(model.templates.flatten(1), dim=1)
    cosine = (flat @ flat.T).fill_diagonal_(-1.0)
    first, second = divmod(int(cosine.argmax()), len(names))
    return names[[first, second]]


def time_answers(model) -> tuple[float, float]:
    """Spikes a second, of the heads alone and with the encoder before them; one thread of the CPU."""
    config = model.encoder.config
    snippets = torch.randn(4096, config.num_channels, config.num_samples)
    speeds = []
    with torch.inference_mode(), one_thread():
        features = model.encoder.represent(snippets)
        for work in (
            lambda: model.heads.probability(features),
            lambda: model.heads.probability(model.encoder.represent(snippets)),
        ):
            work()
            repeats, started = 0, time.process_time()
            while time.process_time() - started < 1.0:
                work()
                repeats += 1
            speeds.append(repeats * len(snippets) / (time.process_time() - started))
    return speeds[0], speeds[1]


if __name__ == "__main__":
    main()
