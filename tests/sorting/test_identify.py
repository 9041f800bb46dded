"""Peaks and units of an earlier session, planted: who is known, who is new, who is joined."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from accm_core.learning.classify import PlacedHeads
from accm_core.params import ClusterParams, HeadsParams, RunParams
from accm_core.sorting import identify
from accm_core.sorting.identify import claim_peaks, cluster_rest, identify_units
from accm_core.sorting.match import Matches, build_bank
from accm_core.sorting.templates import WaveformAverage
from accm_core.types import ArrayRecording, Peaks, Snippets

CPU = torch.device("cpu")
NUM_BEFORE, NUM_SAMPLES = 21, 60
TIME = (np.arange(NUM_SAMPLES) - NUM_BEFORE) / 30.0


def shape(width, channels):
    return (-np.exp(-((TIME / width) ** 2))[:, None] * np.array(channels)).astype(np.float32)


KNOWN = np.stack([shape(0.1, [20, 5, 0, 0]), shape(0.3, [0, 4, 15, 3])])
NEW = shape(0.1, [0, 0, 3, 20])


def place(answer, monkeypatch):
    """Two heads on four channels whose network is a function of the snippets."""
    placed = PlacedHeads(
        None,
        None,
        ("a", "unused", "b"),
        np.array([0, 2]),
        np.tile(np.arange(4), (2, 1)),
        KNOWN,
        np.zeros(2, dtype=np.int64),
        NUM_BEFORE,
        NUM_SAMPLES,
    )
    monkeypatch.setattr(PlacedHeads, "answer", lambda self, waveforms, device: answer(waveforms))
    return placed


def nearest(waveforms):
    """Sure of the known unit that fits better, whatever it is that fired."""
    fit = np.einsum("nts,kts->nk", waveforms, KNOWN) / (KNOWN**2).sum(axis=(1, 2))
    sure = np.full((len(waveforms), 2), 0.01, dtype=np.float32)
    sure[np.arange(len(waveforms)), fit.argmax(axis=1)] = 0.99
    return sure


def make_snippets(shapes, seed=0):
    waveforms = np.asarray(shapes) + np.random.default_rng(seed).normal(0, 1, (len(shapes), NUM_SAMPLES, 4))
    count = len(shapes)
    peaks = Peaks(
        np.arange(count) * 100,
        np.zeros(count, np.int64),
        np.full(count, -9, np.float32),
        np.zeros(count, np.float32),
    )
    return Snippets(waveforms.astype(np.float32), np.tile(np.arange(4), (count, 1)), peaks, NUM_BEFORE)


def test_sure_heads_take_their_own_and_no_new_unit(monkeypatch):
    shapes = [KNOWN[0]] * 50 + [KNOWN[1]] * 50 + [NEW] * 50 + [4 * KNOWN[0]] * 20
    claimed = claim_peaks(place(nearest, monkeypatch), make_snippets(shapes), HeadsParams(), CPU)
    assert (claimed[:50] == 0).mean() > 0.9
    assert (claimed[50:100] == 1).mean() > 0.9
    assert (claimed[100:] == -1).all()


def test_unsure_heads_take_nothing(monkeypatch):
    placed = place(lambda waveforms: np.full((len(waveforms), 2), 0.8, dtype=np.float32), monkeypatch)
    snippets = make_snippets([KNOWN[0]] * 10)
    assert (claim_peaks(placed, snippets, HeadsParams(), CPU) == -1).all()
    assert (claim_peaks(placed, snippets, HeadsParams(accept=0.7), CPU) == 0).all()


def test_peaks_of_other_channels_are_not_asked_about(monkeypatch):
    snippets = make_snippets([KNOWN[0]] * 10)
    elsewhere = replace(snippets, channels=snippets.channels[:, ::-1])
    assert (claim_peaks(place(nearest, monkeypatch), elsewhere, HeadsParams(), CPU) == -1).all()


def test_heads_clusters_come_last_and_small_ones_are_given_back(monkeypatch):
    rng = np.random.default_rng(0)
    embedding = np.concatenate([rng.normal(k * 20, 1, (60, 3)) for k in range(3)]).astype(np.float32)
    claimed = np.full(180, -1)
    claimed[:60] = 1
    claimed[60:70] = 0  # fewer than a cluster needs
    hoods = np.tile(np.arange(4), (4, 1))
    labels, homes = cluster_rest(
        claimed,
        place(nearest, monkeypatch),
        embedding,
        np.zeros(180, np.int64),
        hoods,
        ClusterParams(),
        seed=0,
    )
    assert len(homes) == 3
    assert (labels[:60] == 2).all()
    assert len(set(labels[60:120])) == 1
    assert len(set(labels[120:])) == 1
    assert labels[60] != labels[120]


def make_match(unit_template, units, copies=60, monkeypatch=None):
    """Traces with a spike every 100 samples, of the templates in turn, and their matches."""
    bank = build_bank(
        np.pad(np.stack(unit_template), ((0, 0), (9, 21), (0, 0))),
        30,
        np.r_[1.0, np.zeros(191)],
        np.full(len(unit_template), 0.1),
    )
    samples = 500 + 100 * np.arange(copies * len(units))
    unit_index = np.tile(units, copies)
    traces = np.random.default_rng(0).normal(0, 1, (samples[-1] + 500, 4)).astype(np.float32)
    for sample, unit in zip(samples, unit_index, strict=True):
        traces[sample - NUM_BEFORE : sample - NUM_BEFORE + NUM_SAMPLES] += unit_template[unit]
    count = len(samples)
    ones = np.ones(count, np.float32)
    matches = Matches(samples, 0 * ones, unit_index, ones, 100 * ones, ones)
    average = WaveformAverage(len(unit_template), 90, 4)
    for unit in units:
        average.total[unit] = 5.0 * bank.templates[unit]
        average.counts[unit] = 5
    return ArrayRecording(traces=traces, sampling_frequency=30_000.0), bank, matches, average


@pytest.fixture
def ask(monkeypatch):
    """Name the units of planted traces; the traces are the whitened ones already."""

    def run(unit_template, units):
        recording, bank, matches, average = make_match(unit_template, units)
        placed = place(nearest, monkeypatch)

        def classify(recording, preprocessor, placed, samples, *, at_peak, run, device):
            assert at_peak
            assert (np.diff(samples) >= 0).all()
            windows = samples[:, None] + np.arange(NUM_SAMPLES) - NUM_BEFORE
            return nearest(recording.traces[windows])

        monkeypatch.setattr(identify, "classify_spikes", classify)
        return (
            bank,
            matches,
            identify_units(
                recording,
                None,
                placed,
                bank,
                matches,
                average,
                refractory=24,
                run=RunParams(),
                device=CPU,
            ),
        )

    return run


def test_units_get_their_names_and_new_ones_none(ask):
    _, matches, (names, same, average) = ask([KNOWN[1], NEW, KNOWN[0]], [0, 1, 2])
    assert names == ("b", "", "a")
    assert same is matches
    assert average.counts.tolist() == [5, 5, 5]


def test_halves_of_a_known_unit_are_joined(ask):
    """The second half is matched two samples early, its template two samples late."""
    late = np.roll(0.8 * KNOWN[0], 2, axis=0)
    bank, matches, (names, joined, average) = ask([KNOWN[0], late, NEW], [0, 0, 1, 2])
    assert names == ("a", "a", "")
    assert np.bincount(joined.unit_index, minlength=3).tolist() == [180, 0, 60]
    moved = matches.unit_index == 1
    assert set(matches.sample_index[moved] + 2) <= set(joined.sample_index)
    assert (np.diff(joined.sample_index) >= 0).all()
    assert joined.scale.min() == pytest.approx(0.8, rel=1e-3)
    assert average.counts.tolist() == [10, 0, 5]
    peak = np.abs(average.mean()[0]).max(axis=1).argmax()
    assert peak == bank.num_before


def test_a_unit_that_has_grown_out_of_all_bounds_is_another(ask):
    _, _, (names, *_) = ask([3 * KNOWN[0], KNOWN[1]], [0, 1])
    assert names == ("", "b")


def test_units_without_clean_spikes_keep_no_name(ask):
    _, _, (names, *_) = ask([KNOWN[0], KNOWN[1]], [1])
    assert names == ("", "b")
