"""Two shanks joined into one result, from planted matches."""

import json

import numpy as np
import pytest

from accm_core.learning.checkpoint import Model
from accm_core.learning.encoder import EncoderConfig, SpikeEncoder
from accm_core.params import SignalParams, SorterParams
from accm_core.signal.preprocess import fit_preprocessor
from accm_core.sorting.match import Matches, build_bank
from accm_core.sorting.result import ShankResult, build_sorting
from accm_core.sorting.templates import WaveformAverage
from accm_core.types import ArrayRecording, Peaks, Segment, Snippets

FS = 10_000
PARAMS = SorterParams(match={"ms_before": 1.0, "ms_after": 2.0})
NUM_BEFORE, NUM_SAMPLES = 10, 30
GROUPS = np.array([7, 3, 7, 3, 7, 3])
DEAD = 2
DEPTHS = {3: [-80.0, -50.0, -30.0], 7: [-120.0, -60.0]}
SEGMENTS = (Segment(0, 15_000), Segment(18_000, 30_000))


@pytest.fixture(scope="module")
def recording():
    traces = np.random.default_rng(0).normal(0, 5, (3 * FS, 6)).astype(np.float32)
    traces[:, DEAD] = 1.0
    locations = np.stack([10.0 * np.arange(6), np.zeros(6)], axis=1)
    return ArrayRecording(
        traces=traces,
        sampling_frequency=FS,
        channel_locations=locations,
        channel_groups=GROUPS,
        segments=SEGMENTS,
        t_start=50.0,
    )


def make_matches(spikes, bank):
    """From rows (sample, unit, scale), the scale as matching gives it: drawn towards 1 by the prior."""
    samples, units, scale = np.array(sorted(spikes)).T
    energy, prior = bank.energy[units.astype(int)], bank.prior[units.astype(int)]
    scale = (scale * energy + prior) / (energy + prior)
    ones = np.ones(len(samples), np.float32)
    return Matches(
        samples.astype(np.int64), 0 * ones, units.astype(np.int64), scale.astype(np.float32), 99 * ones, ones
    )


def make_shank(recording, group, spikes, is_unit=None, counts=None, peaks=(), embedding=None, names=None):
    channels = np.flatnonzero(group == GROUPS)
    preprocessor = fit_preprocessor(
        [recording.traces[:FS]], channels, np.zeros((len(channels),) * 2), SignalParams(), FS
    )
    num_units, num_channels = len(DEPTHS[group]), len(preprocessor.channels)
    mean = np.zeros((num_units, NUM_SAMPLES, num_channels))
    shape = np.exp(-0.5 * ((np.arange(NUM_SAMPLES) - NUM_BEFORE) / 2) ** 2)
    for unit, depth in enumerate(DEPTHS[group]):
        mean[unit, :, unit % num_channels] = depth * shape
        mean[unit, :, (unit + 1) % num_channels] = 0.3 * depth * shape
    whitened = (mean @ preprocessor.whitening).astype(np.float32)
    bank = build_bank(whitened, NUM_BEFORE, preprocessor.autocovariance, np.full(num_units, 0.1))
    average = WaveformAverage(num_units, NUM_SAMPLES, num_channels)
    average.counts += np.full(num_units, 10) if counts is None else np.array(counts)
    average.total += mean * average.counts[:, None, None]
    average.total_square += (mean**2 + 4.0) * average.counts[:, None, None]
    peaks = np.array(peaks, dtype=np.int64).reshape(-1, 2)
    zeros = np.zeros(len(peaks), np.float32)
    return ShankResult(
        preprocessor=preprocessor,
        bank=bank,
        is_unit=np.ones(num_units, bool) if is_unit is None else np.array(is_unit),
        names=("",) * num_units if names is None else names,
        matches=make_matches(spikes, bank),
        average=average,
        snippets=Snippets(
            np.zeros((len(peaks), 20, 1), np.float32),
            peaks[:, 1:],
            Peaks(peaks[:, 0], peaks[:, 1], zeros, zeros),
            7,
        ),
        embedding=np.zeros((len(peaks), 4), np.float32) if embedding is None else embedding,
        why_empty="",
    )


SHANK_3 = [(100, 0, 1.0), (500, 2, 0.9), (700, 1, 1.2), (20_000, 0, 1.1)]
SHANK_7 = [(90, 1, 1.0), (500, 0, 1.0), (505, 1, 1.0), (25_000, 0, 0.5)]


def build(recording, *shanks):
    return build_sorting(recording, shanks, PARAMS, seed=3, device="cpu")


@pytest.fixture(scope="module")
def sorting(recording):
    first = make_shank(recording, 3, SHANK_3, is_unit=[True, False, True])
    return build(recording, first, make_shank(recording, 7, SHANK_7))


def test_spikes_are_joined_in_order_of_time(sorting):
    """The absorber, unit 1 of shank 3, and its spike are gone; the units after it move up."""
    assert sorting.sample_index.tolist() == [90, 100, 500, 500, 505, 20_000, 25_000]
    assert sorting.unit_index.tolist() == [3, 0, 1, 2, 3, 0, 2]
    assert sorting.unit_ids.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(sorting.spike_times, 50 + sorting.sample_index / FS)
    np.testing.assert_allclose(sorting.segment_times, [[50, 51.5], [51.8, 53]])
    assert sorting.segments == SEGMENTS


def test_amplitudes_are_what_the_traces_say(sorting):
    """The template times the scale without the prior's pull."""
    expected = [-60, -80, -30 * 0.9, -120, -60, -80 * 1.1, -120 * 0.5]
    np.testing.assert_allclose(sorting.amplitude_uV, expected, rtol=1e-4)


def test_templates_stand_on_their_shanks_channels(sorting):
    assert sorting.channel_ids == ("0", "1", "3", "4", "5")
    assert sorting.bad_channel_ids == ("2",)
    assert sorting.channel_groups.tolist() == [7, 3, 3, 7, 3]
    np.testing.assert_array_equal(sorting.channel_locations[:, 0], [0, 10, 30, 40, 50])
    mean = sorting.templates.mean
    assert mean.shape == sorting.templates.std.shape == (4, NUM_SAMPLES, 5)
    assert sorting.templates.num_before == NUM_BEFORE
    assert (np.abs(mean).max(axis=1) > 0).tolist() == [
        [False, True, True, False, False],
        [False, True, False, False, True],
        [True, False, False, True, False],
        [True, False, False, True, False],
    ]
    assert sorting.templates.main_channel.tolist() == [1, 4, 0, 3]
    np.testing.assert_allclose(mean.min(axis=(1, 2)), [-80, -30, -120, -60], rtol=1e-5)
    seen = np.abs(mean).max(axis=1) > 0
    np.testing.assert_allclose(sorting.templates.std.max(axis=1)[seen], 2.0, atol=0.02)


def test_overlaps_are_marked_within_a_shank_alone(sorting):
    """500 and 505 of shank 7 touch; 500 of shank 3 is another neuron elsewhere."""
    assert sorting.is_overlap.tolist() == [False, False, False, True, True, False, False]


def test_quality_and_labels_have_one_value_a_unit(sorting):
    assert sorting.quality["num_spikes"].tolist() == [2, 1, 2, 2]
    assert all(len(values) == 4 for values in sorting.quality.values())
    assert sorting.labels == ("noise",) * 4
    assert sorting.label_reasons[0].startswith("num_spikes 2 < 10")


def test_a_unit_without_a_clean_spike_gets_its_matching_template(recording):
    found = build(recording, make_shank(recording, 7, SHANK_7, counts=[10, 0]))
    assert found.templates.mean[1].min() == pytest.approx(-60, rel=0.02)
    assert found.templates.main_channel.tolist() == [0, 1]


def test_units_without_spikes_are_left_out(recording):
    only_second = [row for row in SHANK_7 if row[1] == 1]
    found = build(recording, make_shank(recording, 7, only_second))
    assert found.num_units == 1
    assert found.unit_index.tolist() == [0, 0]
    assert found.templates.mean.min() == pytest.approx(-60, rel=1e-4)


def test_units_of_a_model_keep_their_names_and_new_ones_get_one(recording):
    """The name of the unit that is left out is free; a new unit does not take a known one's name."""
    first = make_shank(recording, 3, SHANK_3, [True, False, True], names=("cell A", "new-2", ""))
    second = make_shank(recording, 7, SHANK_7, names=("new-0", ""))
    assert build(recording, first, second).unit_names == ("cell A", "new-1", "new-0", "new-2")


def test_units_without_a_model_are_called_by_their_ids(sorting):
    assert sorting.unit_names == ("0", "1", "2", "3")
    assert sorting.provenance["model"] is None


def test_the_model_is_written_down(recording):
    encoder = SpikeEncoder(EncoderConfig(4, 60, 8, width=4), 1.0)
    model = Model(encoder, None, {"kind": "encoder", "name": "lab"})
    shank = make_shank(recording, 3, SHANK_3)
    found = build_sorting(recording, [shank], PARAMS, seed=3, device="cpu", model=model)
    assert found.provenance["model"] == {"name": "lab", "kind": "encoder", "sha256": model.sha256}
    asked = build_sorting(recording, [shank], PARAMS, seed=3, device="cpu", model=model, model_name="a.b")
    assert asked.provenance["model"]["name"] == "a.b"


def test_embedded_spikes_point_to_their_rows(recording):
    """Peaks near a spike on its unit's channel are its own; others have no spike."""
    embedding = np.arange(20.0).reshape(5, 4).astype(np.float32) ** 2
    peaks = [(89, 1), (502, 0), (506, 1), (9000, 0), (25_003, 1)]  # the last one on another channel
    first = make_shank(recording, 3, SHANK_3)
    second = make_shank(recording, 7, SHANK_7, peaks=peaks, embedding=embedding)
    found = build(recording, first, second)
    rows = found.embedding.spike_index
    np.testing.assert_array_equal(found.sample_index[rows], [90, 500, 505])
    np.testing.assert_array_equal(found.unit_index[rows], [4, 3, 4])
    centred = embedding[:3] - embedding[:3].mean(axis=0)
    distances = np.linalg.norm(found.embedding.position[:, None] - found.embedding.position, axis=2)
    expected = np.linalg.norm(centred[:, None] - centred, axis=2)
    # three points lie in a plane: two dimensions keep their distances
    np.testing.assert_allclose(distances, expected, rtol=1e-3)


def test_no_units_at_all(recording):
    preprocessor = make_shank(recording, 3, SHANK_3).preprocessor
    other = make_shank(recording, 7, SHANK_7).preprocessor
    found = build(
        recording,
        ShankResult.without_units(preprocessor, "too quiet"),
        ShankResult.without_units(other, "only 3 peaks found"),
    )
    assert found.num_units == 0
    assert found.templates.mean.shape == (0, NUM_SAMPLES, 5)
    assert found.embedding.position.shape == (0, 2)
    assert found.labels == found.label_reasons == ()
    assert found.bad_channel_ids == ("2",)
    assert found.provenance["warnings"] == [
        "No units on shank 0: too quiet.",
        "No units on shank 1: only 3 peaks found.",
    ]


def test_one_shank_without_units(recording):
    preprocessor = make_shank(recording, 3, SHANK_3).preprocessor
    found = build(
        recording, ShankResult.without_units(preprocessor, "why"), make_shank(recording, 7, SHANK_7)
    )
    assert found.num_units == 2
    assert found.templates.mean.shape == (2, NUM_SAMPLES, 5)
    assert found.templates.main_channel.tolist() == [0, 3]
    assert found.provenance["warnings"] == ["No units on shank 0: why."]


def test_provenance_is_plain_json(sorting):
    provenance = json.loads(json.dumps(sorting.provenance))
    assert provenance == sorting.provenance
    assert SorterParams.model_validate(provenance["params"]) == PARAMS
    assert (provenance["seed"], provenance["device"]) == (3, "cpu")
    assert {"accm", "numpy", "torch", "pynwb"} <= provenance["versions"].keys()
