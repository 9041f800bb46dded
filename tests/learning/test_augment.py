"""Each change that a view may bring, alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accm_core.learning.augment import Augmenter, shift
from accm_core.params import LearnParams

FS = 30_000.0
NUM_CHANNELS, NUM_SAMPLES = 3, 60
STILL = {
    "amplitude_std": 0.0,
    "collision_share": 0.0,
    "jitter_ms": 0.0,
    "channel_dropout": 0.0,
    "noise_scale": 0.0,
}


def make_augmenter(seed=0, spikes=None, noise=None, **changes):
    rng = np.random.default_rng(0)
    if spikes is None:
        spikes = torch.from_numpy(rng.normal(0, 5, (200, NUM_CHANNELS, NUM_SAMPLES)).astype(np.float32))
    if noise is None:
        noise = torch.from_numpy(rng.normal(0, 1, (50, NUM_CHANNELS, NUM_SAMPLES)).astype(np.float32))
    params = LearnParams(**(STILL | changes))
    return Augmenter(spikes, noise, params, FS, torch.Generator().manual_seed(seed))


def unit_impulse():
    spikes = torch.zeros(1, NUM_CHANNELS, NUM_SAMPLES)
    spikes[:, :, 21] = 1.0
    return spikes


@given(delay=st.integers(-70, 70), length=st.integers(1, 60))
def test_shift_is_a_slice(delay, length):
    waveform = np.random.default_rng(0).normal(0, 1, (2, length)).astype(np.float32)
    moved = shift(torch.from_numpy(waveform)[None], torch.tensor([delay]))[0].numpy()
    expected = np.zeros_like(waveform)
    for t in range(length):
        if 0 <= t - delay < length:
            expected[:, t] = waveform[:, t - delay]
    np.testing.assert_array_equal(moved, expected)


def test_each_spike_has_its_own_shift():
    moved = shift(unit_impulse().repeat(3, 1, 1), torch.tensor([0, 5, -4]))
    assert moved[:, 0].argmax(dim=1).tolist() == [21, 26, 17]


def test_nothing_asked_for_leaves_the_spike_as_it_is():
    augmenter = make_augmenter()
    spikes = augmenter.draw_spikes(100)
    before = spikes.clone()
    assert torch.equal(augmenter.make_view(spikes), spikes)
    assert torch.equal(spikes, before)


def test_drawn_spikes_are_the_recordings_own_and_most_differ():
    augmenter = make_augmenter()
    drawn = augmenter.draw_spikes(400)
    rows = [(augmenter.waveforms == spike).all(dim=2).all(dim=1).nonzero().item() for spike in drawn]
    assert len(set(rows)) > 150


def test_views_do_not_change_the_spikes():
    augmenter = make_augmenter(amplitude_std=0.1, collision_share=1.0, noise_scale=1.0)
    spikes = augmenter.draw_spikes(50)
    before, all_before = spikes.clone(), augmenter.waveforms.clone()
    augmenter.make_view(spikes)
    assert torch.equal(spikes, before)
    assert torch.equal(augmenter.waveforms, all_before)


def test_amplitude_is_one_factor_a_spike():
    augmenter = make_augmenter(amplitude_std=0.1)
    spikes = augmenter.draw_spikes(2000)
    factor = augmenter.make_view(spikes) / spikes
    assert float((factor - factor[:, :1, :1]).abs().max()) < 1e-4
    assert float(factor[:, 0, 0].mean()) == pytest.approx(1.0, abs=0.01)
    assert float(factor[:, 0, 0].std()) == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_noise_is_the_recordings_own_at_the_strength_asked_for(scale):
    augmenter = make_augmenter(noise_scale=scale)
    spikes = augmenter.draw_spikes(50)
    added = augmenter.make_view(spikes) - spikes
    apart = (added[:, None] - scale * augmenter.noise[None]).abs().amax(dim=(2, 3))
    assert float(apart.amin(dim=1).max()) < 1e-4


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_collisions_come_as_often_as_asked_and_spare_the_peak(share):
    augmenter = make_augmenter(
        spikes=unit_impulse(), collision_share=share, collision_min_ms=0.2, collision_max_ms=0.6
    )
    spikes = torch.zeros(3000, NUM_CHANNELS, NUM_SAMPLES)
    views = augmenter.make_view(spikes)
    hit = views.abs().amax(dim=(1, 2)) > 0
    assert float(hit.float().mean()) == pytest.approx(share, abs=0.03)
    if share > 0:
        delay = views[hit][:, 0].argmax(dim=1) - 21
        assert sorted(set(delay.abs().tolist())) == list(range(6, 19))  # 0.2 to 0.6 ms
        assert float((delay > 0).float().mean()) == pytest.approx(0.5, abs=0.05)


def test_jitter_keeps_within_its_limit():
    augmenter = make_augmenter(jitter_ms=0.1)
    views = augmenter.make_view(unit_impulse().repeat(500, 1, 1))
    assert sorted(set((views[:, 0].argmax(dim=1) - 21).tolist())) == list(range(-3, 4))


def test_dropped_channels_are_silent_and_the_others_whole():
    augmenter = make_augmenter(channel_dropout=0.25)
    spikes = augmenter.draw_spikes(2000)
    views = augmenter.make_view(spikes)
    silent = (views == 0).all(dim=2)
    assert float(silent.float().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(views[~silent], spikes[~silent])


def test_same_seed_same_views_and_another_seed_other_views():
    changes = {"amplitude_std": 0.1, "collision_share": 0.5, "noise_scale": 1.0, "jitter_ms": 0.1}
    views = []
    for seed in (1, 1, 2):
        augmenter = make_augmenter(seed, **changes)
        views.append(augmenter.make_view(augmenter.draw_spikes(64)))
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


def test_the_global_generator_is_left_alone():
    state = torch.random.get_rng_state()
    augmenter = make_augmenter(amplitude_std=0.1, collision_share=0.5, noise_scale=1.0, channel_dropout=0.1)
    augmenter.make_view(augmenter.draw_spikes(64))
    assert torch.equal(torch.random.get_rng_state(), state)
