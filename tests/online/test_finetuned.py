"""A fine-tuned model's units on today's noise."""

import numpy as np
import pytest
import torch

from accm_core.errors import ModelError
from accm_core.learning.checkpoint import Model
from accm_core.learning.encoder import EncoderConfig, SpikeEncoder
from accm_core.learning.heads import Heads, HeadsConfig
from accm_core.online.finetuned import units_of_model
from accm_core.online.plan import make_plan, measure_shanks
from accm_core.online.sorter import OnlineSorter
from accm_core.params import SorterParams

PARAMS = SorterParams()
SLOTS = ["2", "0", None, "3"]


@pytest.fixture(scope="module")
def preprocessors(stream):
    return measure_shanks(stream.recording, PARAMS)


@pytest.fixture(scope="module")
def learned(stream, preprocessors):
    """What the heads of two units learned, whitened, (n_units, n_samples, n_channels)."""
    before = stream.units.num_before
    return preprocessors[0].whiten(stream.units.templates[1:3, before - 21 : before + 39])


def make_model(waveforms, channels, names=("u", "v")):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = SpikeEncoder(EncoderConfig(4, 60, 8, width=4), 2.5)
        heads = Heads(HeadsConfig("binary", encoder.config.num_features, names)) if names else None
    card = {
        "kind": "finetuned",
        "name": "mouse",
        "units": [{"name": n, "channels": channels, "peak_delay_ms": 0} for n in names],
        "num_before": 21,
        "sampling_frequency": 3e4,
    }
    templates = torch.from_numpy(np.ascontiguousarray(waveforms.transpose(0, 2, 1))) if names else None
    return Model(encoder, heads, card, templates)


def test_units_are_taken_from_the_slots_of_their_heads(stream, preprocessors, learned):
    slots = [2, 0, 1, 3]
    model = make_model(learned[:, :, slots], ["2", "0", "1", "3"])
    units = units_of_model(model, stream.recording, preprocessors, PARAMS.snippet)
    assert units.names == ("u", "v")
    np.testing.assert_allclose(preprocessors[0].whiten(units.templates), learned, atol=1e-3)
    plan = make_plan(stream.recording, preprocessors, units, PARAMS)
    sorter = OnlineSorter(plan)
    spikes = sorter.feed(stream.traces[:60_000])
    sorter.close()
    truth = stream.truth.sample_index[stream.truth.unit_index == 2]
    own = spikes.sample_index[spikes.unit_index == 1]
    near = np.abs(truth[truth < 59_000][:, None] - own[None]).min(axis=1) < 12
    assert near.mean() > 0.9


def test_a_slot_without_a_channel_is_silent(stream, preprocessors, learned):
    model = make_model(learned, ["2", "0", None, "3"])
    units = units_of_model(model, stream.recording, preprocessors, PARAMS.snippet)
    whitened = preprocessors[0].whiten(units.templates)
    np.testing.assert_allclose(whitened[:, :, [2, 0, 3]], learned[:, :, [0, 1, 3]], atol=1e-3)
    np.testing.assert_allclose(whitened[:, :, 1], 0, atol=1e-3)


def test_a_model_without_heads_knows_no_units(stream, preprocessors, learned):
    with pytest.raises(ModelError, match="The model 'mouse' has an encoder alone and knows no units"):
        units_of_model(make_model(learned, SLOTS, ()), stream.recording, preprocessors, PARAMS.snippet)


def test_a_model_of_another_probe_is_refused(stream, preprocessors, learned):
    model = make_model(learned, ["x", "0", "1", "2"])
    with pytest.raises(ModelError, match="The model is for another probe"):
        units_of_model(model, stream.recording, preprocessors, PARAMS.snippet)
