"""A step's decisions on planted spikes, of which some were decided before and some are still to come."""

import numpy as np
import pytest

from accm_core.online.decide import NOTHING_KNOWN, Known, decide
from accm_core.params import MatchParams
from accm_core.sorting.match import build_bank, describe_units, fit_templates
from accm_core.sorting.pursuit import MIN_EDGE

NUM_BEFORE, NUM_SAMPLES, NUM_CHANNELS = 15, 45, 4
TIME = np.arange(NUM_SAMPLES) - NUM_BEFORE
START, STOP, UNTIL = 200, 330, 300
"""Of the fits that are known, and the end of those that are decided."""
OVERLAP = 20


def unit(depth, width, place):
    spread = np.exp(-np.abs(np.arange(NUM_CHANNELS) - place))
    shape = -np.exp(-0.5 * (TIME[:, None] / width) ** 2)
    return (depth * (shape - shape.mean()) * spread).astype(np.float32)


@pytest.fixture(scope="module")
def bank():
    templates = np.stack([unit(12, 2.0, 0), unit(10, 4.0, 1), unit(15, 3.0, 3)])
    return build_bank(templates, NUM_BEFORE, np.r_[1.0, np.zeros(99)], np.full(3, 0.1))


def step(bank, spikes, recent=NOTHING_KNOWN):
    """Decide on traces that hold these spikes (sample, unit) and nothing else."""
    traces = np.zeros((600, NUM_CHANNELS), np.float32)
    for sample, which in spikes:
        traces[sample - NUM_BEFORE : sample - NUM_BEFORE + NUM_SAMPLES] += bank.templates[which]
    fits = np.ascontiguousarray(fit_templates(traces, bank)[:, START:STOP].T)
    projected = np.arange(START, STOP, dtype=np.float32)[:, None] * np.ones((1, 6), np.float32)
    model = describe_units(bank, MatchParams(), refractory=24, edge=MIN_EDGE)
    return decide(fits, projected, model, recent, STOP, UNTIL, OVERLAP)


def known(*spikes):
    samples, units = np.array(spikes).T
    ones = np.ones(len(spikes), np.float32)
    return Known(samples.astype(np.int64), units.astype(np.int64), 0 * ones, ones)


def test_what_is_old_enough_is_decided(bank):
    (samples, offset, units, scale, *_), is_overlap, clean_units, _, recent = step(
        bank, [(230, 0), (298, 2), (301, 1)]
    )
    assert list(zip(samples, units, strict=True)) == [(230, 0), (298, 2)]
    np.testing.assert_allclose(scale, 1, atol=0.02)
    np.testing.assert_allclose(offset, 0, atol=0.05)
    assert is_overlap.tolist() == [False, True]  # with what is not decided yet
    assert clean_units.tolist() == [0]
    np.testing.assert_array_equal(recent.sample_index, samples[samples >= UNTIL - 2 * NUM_SAMPLES])


def test_what_was_decided_is_taken_out_first(bank):
    """The spike at 197 is known; beside it one of an alike unit is right in size, time and company."""
    spikes = [(197, 0), (214, 1), (280, 2)]
    (samples, _, units, scale, *_), is_overlap, clean_units, _, recent = step(bank, spikes, known(spikes[0]))
    assert list(zip(samples, units, strict=True)) == spikes[1:]
    np.testing.assert_allclose(scale, 1, atol=0.02)
    assert is_overlap.tolist() == [True, False]
    assert clean_units.tolist() == [2]
    np.testing.assert_array_equal(recent.sample_index, [214, 280])


def test_points_are_what_the_kernels_gave_at_clean_spikes(bank):
    _, _, clean_units, points, _ = step(bank, [(230, 0), (290, 2)])
    assert clean_units.tolist() == [0, 2]
    np.testing.assert_allclose(points, np.array([[230.0], [290.0]]) * np.ones((1, 6)), atol=0.1)


def test_nothing_is_decided_in_silence(bank):
    before = known((150, 1))
    matches, is_overlap, clean_units, points, recent = step(bank, [], before)
    assert [len(values) for values in (*matches, is_overlap, clean_units, points)] == [0] * 9
    assert len(recent.sample_index) == 0
