"""What labelled spikes show of their units, and the examples made from them: planted on quiet traces."""

import numpy as np
import pytest
import torch

from accm_core.learning.examples import FLOOR, STEPS_PER_SAMPLE, ExampleMaker
from accm_core.learning.labelled import LabelledUnits, Stretches, learn_units, mean_waveforms, read_stretches
from accm_core.params import HeadsParams, RunParams
from accm_core.signal.snippets import cut_snippets
from accm_core.types import ArrayRecording

FS = 30_000.0
RUN = RunParams(num_workers=1)
BEFORE, LENGTH = 45, 120


class Untouched:
    """Stands in for a preprocessor: the traces are whitened already."""

    channels = np.arange(4)
    margin = 0

    def filter(self, raw, block):
        return raw

    def whiten(self, traces):
        return traces


def wave(center, width, height, length):
    time = np.arange(length) - center
    return -height * np.exp(-((time / width) ** 2)) + 0.4 * height * np.exp(-(((time - 12) / 8) ** 2))


GAINS = np.array([[1.0, 0.4, 0.1, 0.0], [0.0, 0.2, 1.0, 0.5]])


def make_session(jitter, scale_std, seconds=20, seed=0):
    """Two units, their labels off the true times by a Gaussian of ``jitter`` samples."""
    rng = np.random.default_rng(seed)
    traces = rng.normal(0, 1, (int(seconds * FS), 4)).astype(np.float32)
    samples = []
    for unit, gains in enumerate(GAINS):
        places = np.arange(500 + 700 * unit, len(traces) - 500, 1400)
        for place in places:
            moved = place + jitter * rng.normal()
            scale = 1 + scale_std * rng.normal()
            first = place - 60
            traces[first : first + 160] += (
                scale * wave(moved - first, 4.0, 15.0, 160)[:, None] * gains
            ).astype(np.float32)
        samples.append(places)
    recording = ArrayRecording(traces=traces, sampling_frequency=FS)
    return recording, samples


def learn(recording, samples):
    hoods = np.tile(np.arange(4), (4, 1))
    stretches = read_stretches(recording, Untouched(), RUN, LENGTH)
    rough = mean_waveforms(recording, Untouched(), samples, RUN)
    return learn_units(recording, Untouched(), hoods, samples, rough, stretches, seed=0, run=RUN)


@pytest.mark.parametrize(("jitter", "scale_std"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.1), (0.4, 0.08)])
def test_variation_is_measured_beyond_noise(jitter, scale_std):
    units = learn(*make_session(jitter, scale_std))
    assert units.jitter == pytest.approx(jitter, abs=0.12)
    for scales in units.scales:
        assert scales.std() == pytest.approx(scale_std, abs=0.025)
        assert scales.mean() == pytest.approx(1.0, abs=0.02)


def test_templates_peaks_and_channels():
    recording, samples = make_session(0.0, 0.0)
    units = learn(recording, [samples[0], samples[1] - 3])
    assert units.main_channel.tolist() == [0, 2]
    assert units.peak_offset.tolist() == [0, 3]
    assert units.templates.shape == (2, LENGTH, 4)
    assert units.templates[0, BEFORE, 0] == pytest.approx(-15, abs=1.0)
    np.testing.assert_allclose(units.templates[:, [0, -1]], 0, atol=0.05)


def test_spikes_with_a_collision_are_left_out_of_the_template():
    recording, samples = make_session(0.0, 0.0)
    traces = recording.traces.copy()
    for place in samples[0][::3]:
        traces[place + 15 : place + 35] -= 40.0
    hit = ArrayRecording(traces=traces, sampling_frequency=FS)
    expected, found = learn(recording, samples), learn(hit, samples)
    assert np.abs(mean_waveforms(hit, Untouched(), samples, RUN)[0, BEFORE + 25] + 13).max() < 10
    np.testing.assert_allclose(found.templates[0], expected.templates[0], atol=0.8)


def make_maker(peak_offset=(0, 0), jitter=0.0, noise=0.0, **changes):
    templates = np.stack(
        [wave(BEFORE + k, 4.0, 15.0, LENGTH)[:, None] * g for k, g in zip(peak_offset, GAINS, strict=True)]
    )
    taper = np.hanning(LENGTH)[:, None] ** 0.1
    units = LabelledUnits(
        (templates * taper).astype(np.float32),
        BEFORE,
        np.array([0, 2]),
        np.array(peak_offset),
        (np.ones(5, np.float32), np.ones(5, np.float32)),
        jitter,
    )
    traces = noise * np.random.default_rng(0).normal(size=(5000, 4)).astype(np.float32)
    slots = np.tile(np.arange(4), (2, 1)) if "slots" not in changes else changes.pop("slots")
    return units, ExampleMaker(
        units, np.array([30, 10]), Stretches(traces.astype(np.float32), np.arange(200, 4800)), slots,
        num_before=21, num_samples=60, sampling_frequency=FS, params=HeadsParams(**changes),
        generator=torch.Generator().manual_seed(0), device=torch.device("cpu"),
    )  # fmt: skip


def test_without_collisions_an_example_is_its_unit():
    units, maker = make_maker(collision_share=0.0)
    examples = maker.draw(2000)
    waveforms, fired = examples.waveforms.numpy(), examples.fired.numpy()
    assert set(fired.sum(axis=1)) == {0.0, 1.0}
    assert (examples.counts == 1).all()
    for unit in range(2):
        expected = units.templates[unit, BEFORE - 21 : BEFORE + 39].T
        own = waveforms[fired[:, unit] == 1]
        assert np.abs(own - expected).max() < 6 * FLOOR
    assert np.abs(waveforms[fired.sum(axis=1) == 0]).max() < 6 * FLOOR
    # drawn as often as they fire, but for the share that is drawn evenly
    assert (fired[:, 0].mean() / fired[:, 1].mean()) == pytest.approx(0.675 / 0.325, rel=0.2)
    assert (maker.draw(4000, as_recorded=True).fired.mean(dim=0)[1]) == pytest.approx(0.85 / 4, abs=0.03)


def test_collisions_add_up_and_are_labelled_only_at_the_centre():
    units, maker = make_maker(collision_share=1.0)
    examples = maker.draw(4000)
    fired, counts = examples.fired.numpy(), examples.counts.numpy()
    both = fired.sum(axis=1) == 2
    assert 0.005 < both.mean() < 0.05
    expected = units.templates.sum(axis=0)[BEFORE - 21 : BEFORE + 39].T
    assert np.abs(examples.waveforms.numpy()[both] - expected).max() < 8.0  # half a sample apart at most
    assert (counts[fired == 1] == 1).all()
    unclear = (counts == 0).any(axis=1)
    assert 0.01 < unclear.mean() < 0.15
    energy = np.square(examples.waveforms.numpy()).sum(axis=(1, 2))
    alone = np.square(units.templates).sum(axis=(1, 2))
    assert (energy > 1.2 * alone.max()).mean() > 0.1


def test_same_generator_same_examples():
    first, second = (make_maker(noise=1.0, jitter=0.3)[1].draw(50).waveforms for _ in range(2))
    assert torch.equal(first, second)


def test_a_unit_is_asked_about_where_its_peak_is():
    """Labels of the second unit are three samples early: its head looks three samples later."""
    _, maker = make_maker(peak_offset=(0, 3), collision_share=0.0)
    examples = maker.draw(3000)
    fired, counts = examples.fired.numpy(), examples.counts.numpy()
    assert (counts.sum(axis=1) == 1).all()
    for unit, main in ((0, 0), (1, 2)):
        own = examples.waveforms.numpy()[(fired[:, unit] == 1) & (counts[:, unit] == 1)]
        assert (own[:, main].argmin(axis=1) == 21).mean() > 0.99
    # seen by the other's head, a unit is mostly where the label says
    other = examples.waveforms.numpy()[(fired[:, 1] == 1) & (counts[:, 0] == 1)]
    assert (other[:, 2].argmin(axis=1) == 24).mean() == pytest.approx(0.9, abs=0.05)


def test_slots_without_a_channel_are_silent():
    slots = np.array([[0, 1, 2, 3, -1], [0, 1, 2, 3, -1]])
    _, maker = make_maker(noise=1.0, slots=slots)
    waveforms = maker.draw(100).waveforms
    assert waveforms[:, 4].abs().max() < 6 * FLOOR
    assert waveforms[:, 0].abs().max() > 5


def test_shifts_between_samples_are_those_of_the_snippets():
    """A template moved by half a sample, against the same waveform cut half a sample off."""
    units, maker = make_maker()
    moved = maker._place_units(torch.tensor([0]), torch.tensor([0.5]), torch.tensor([0]))[0].numpy().T
    cut = cut_snippets(
        units.templates[0], np.array([BEFORE]), np.array([-0.5], np.float32), np.arange(4)[None],
        num_before=21, num_samples=60,
    )[0]  # fmt: skip
    assert STEPS_PER_SAMPLE % 2 == 0
    np.testing.assert_allclose(moved, cut, atol=0.1)
