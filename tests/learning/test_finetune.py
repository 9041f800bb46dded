"""Fine-tuning on a simulated tetrode: what it learns, what it measures of labels, what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from accm_core.errors import ModelError
from accm_core.learning.checkpoint import read_model, save_model
from accm_core.learning.classify import (
    check_channels,
    classify_columns,
    classify_spikes,
    list_channels,
    place_heads,
)
from accm_core.learning.encoder import SnippetWindow
from accm_core.learning.finetune import find_samples, finetune
from accm_core.learning.labelled import mean_waveforms
from accm_core.params import SorterParams
from accm_core.signal.chunks import Block
from accm_core.signal.snippets import cut_snippets
from accm_core.signal.survey import survey_shank
from accm_core.simulate import simulate
from accm_core.types import ArrayRecording, Segment

FS = 30_000.0
CPU = torch.device("cpu")
SHORT = SorterParams.model_validate(
    {"heads": {"num_steps": 150, "batch_size": 256}, "learn": {"num_steps": 25}}
)


@pytest.fixture(scope="module")
def session():
    simulated, truth = simulate(
        probe="tetrode", num_units=4, duration_s=60.0, seed=5, firing="poisson", rate_hz=12.0, snr=(8.0, 20.0)
    )
    traces = simulated.get_traces(0, simulated.segments[0].stop)
    recording = ArrayRecording(
        traces=traces, sampling_frequency=FS, channel_locations=simulated.channel_locations, t_start=100.0
    )
    return recording, truth


def split_labels(truth, share=0.2, unit_shift=0):
    labelled = np.random.default_rng(0).random(len(truth.sample_index)) < share
    names = {f"cell {k}": k for k in range(len(truth.unit_names))}
    labels = {
        name: 100.0 + (truth.sample_index[labelled & (truth.unit_index == k)] + unit_shift * k) / FS
        for name, k in names.items()
    }
    return labels, ~labelled


@pytest.fixture(scope="module")
def model(session):
    return finetune(session[0], split_labels(session[1])[0], SHORT, device="cpu")


def classify(recording, model, samples):
    survey = survey_shank(recording, np.arange(4), SHORT, seed=0, report=lambda stage: lambda fraction: None)
    window = SnippetWindow(survey.snippets.num_before, survey.snippets.waveforms.shape[1], FS)
    ids = [recording.channel_ids[k] for k in survey.preprocessor.channels]
    placed = place_heads(model, ids, window, CPU)
    return classify_spikes(recording, survey.preprocessor, placed, samples, run=SHORT.run, device=CPU)


def test_the_other_spikes_are_given_to_their_units(session, model):
    recording, truth = session
    rest = split_labels(truth)[1]
    probability = classify(recording, model, truth.sample_index[rest])
    unit = truth.unit_index[rest]
    alone = is_alone(truth.sample_index)[rest]
    right = probability.argmax(axis=1) == unit
    assert right[alone].mean() > 0.99
    assert right[~alone].mean() > 0.9
    shuffled = np.random.default_rng(0).permutation(unit)
    assert (probability.argmax(axis=1) == shuffled).mean() < 0.5
    # heads say yes to their own and no to others, also where two fire
    assert probability[alone, unit[alone]].mean() > 0.9
    assert probability[alone].sum(axis=1).mean() < 1.2


def is_alone(samples):
    gaps = np.diff(samples, prepend=-1000, append=samples[-1] + 1000)
    return (gaps[1:] > 60) & (gaps[:-1] > 60)


def test_nothing_fires_between_the_spikes(session, model):
    recording, truth = session
    places = np.sort(np.random.default_rng(1).integers(1000, 1_700_000, 1500))
    near = np.searchsorted(truth.sample_index, places)
    far = (truth.sample_index[near] - places > 40) & (places - truth.sample_index[near - 1] > 40)
    assert (classify(recording, model, places[far]).max(axis=1) > 0.5).mean() < 0.02


def test_samples_outside_of_the_segments_are_nobodys(session, model):
    recording, truth = session
    samples = np.array([-5, int(truth.sample_index[3]), recording.segments[-1].stop + 2])
    probability = classify(recording, model, samples)
    assert (probability[[0, 2]] == 0).all()
    assert probability[1].max() > 0.5


@pytest.mark.parametrize(
    "channels",
    [None, [["2", "0", None, None], ["0", "1", "2", "3"], ["3", "2", "1", None], ["2", "0", None, None]]],
    ids=["all", "some"],
)
def test_snippets_of_all_channels_are_told_as_those_of_the_recording(session, model, channels):
    recording, truth = session
    if channels is not None:
        units = [u | {"channels": c} for u, c in zip(model.card["units"], channels, strict=True)]
        model = replace(model, card=model.card | {"units": units})
    survey = survey_shank(recording, np.arange(4), SHORT, seed=0, report=lambda stage: lambda fraction: None)
    samples = truth.sample_index[10:300]  # away from the recording's beginning
    ids = [recording.channel_ids[k] for k in survey.preprocessor.channels]
    expected = classify_spikes(
        recording,
        survey.preprocessor,
        place_heads(model, ids, model.window, CPU),
        samples,
        at_peak=True,
        run=SHORT.run,
        device=CPU,
    )
    margin = survey.preprocessor.margin
    stop = int(samples[-1]) + 1000
    block = Block(Segment(0, stop), margin, stop - margin)
    traces = survey.preprocessor.whiten(survey.preprocessor.filter(recording.traces[:stop], block))
    order = list_channels(model.card)
    assert order == ("0", "1", "2", "3")
    waveforms = cut_snippets(
        traces,
        samples - margin,
        np.zeros(len(samples), np.float32),
        np.tile([ids.index(name) for name in order], (len(samples), 1)),
        num_before=model.window.num_before,
        num_samples=model.window.num_samples,
    )
    found = classify_columns(place_heads(model, order, model.window, CPU), waveforms, CPU)
    assert (expected > 0.5).sum() > 50
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_both_heads_fire_where_two_fired_at_once(session, model):
    recording, truth = session
    template = truth.templates.mean
    before = truth.templates.num_before
    traces = recording.traces.copy()
    places = np.arange(20_000, 1_700_000, 20_011)
    pairs = np.stack([np.arange(len(places)) % 4, (np.arange(len(places)) + 1) % 4], axis=1)
    for place, pair in zip(places, pairs, strict=True):
        for unit in pair:
            traces[place - before : place - before + template.shape[1]] += template[unit]
    doubled = ArrayRecording(
        traces=traces, sampling_frequency=FS, channel_locations=recording.channel_locations
    )
    probability = classify(doubled, model, places)
    told = np.argsort(probability, axis=1)[:, -2:]
    both = (np.sort(told, axis=1) == np.sort(pairs, axis=1)).all(axis=1)
    assert both.mean() > 0.7
    assert (np.take_along_axis(probability, pairs, axis=1) > 0.5).mean() > 0.7


@pytest.mark.slow
def test_labels_may_be_off_by_a_constant_of_each_unit(session):
    """Another sorter's times, say of threshold crossings."""
    recording, truth = session
    labels, rest = split_labels(truth, unit_shift=3)
    shifted = finetune(recording, labels, SHORT, device="cpu")
    delays = [FS * 1e-3 * unit["peak_delay_ms"] for unit in shifted.card["units"]]
    assert np.ptp(delays) >= 5
    samples, unit = truth.sample_index[rest], truth.unit_index[rest]
    moved = samples + 3 * unit
    order = np.argsort(moved, kind="stable")
    right = classify(recording, shifted, moved[order]).argmax(axis=1) == unit[order]
    assert right[is_alone(samples)[order]].mean() > 0.97


def test_same_seed_same_model_and_it_can_be_saved(session, model, tmp_path):
    again = finetune(session[0], split_labels(session[1])[0], SHORT, device="cpu")
    assert again.sha256 == model.sha256
    assert read_model(save_model(model, tmp_path / "m.safetensors")).sha256 == model.sha256


def test_the_card_tells(model):
    card = model.card
    assert card["kind"] == "finetuned"
    assert [unit["name"] for unit in card["units"]] == [f"cell {k}" for k in range(4)]
    assert card["units"][0]["channels"] == ["0", "1", "2", "3"]
    assert card["training"]["labelled_spikes"] == sum(unit["labels"] for unit in card["units"])
    assert (card["sampling_frequency"], card["num_before"]) == (FS, 21)
    assert card["parameters"]["heads"]["num_steps"] == 150


def test_templates_look_like_the_units(session, model):
    recording, truth = session
    survey = survey_shank(recording, np.arange(4), SHORT, seed=0, report=lambda stage: lambda fraction: None)
    trains = [truth.sample_index[truth.unit_index == k] for k in range(4)]
    expected = mean_waveforms(recording, survey.preprocessor, trains, SHORT.run)
    assert (model.templates.abs().amax(dim=1).argmax(dim=1) == 21).all()
    for unit in range(4):
        found = model.templates[unit].numpy().T
        at = np.abs(expected[unit]).max(axis=1).argmax()
        window = expected[unit][at - 21 : at + 39]
        assert (found * window).sum() > 0.97 * np.linalg.norm(found) * np.linalg.norm(window)


def test_units_with_few_labels_are_left_out(session):
    labels, _ = split_labels(session[1])
    labels["rare"] = labels["cell 0"][:4]
    del labels["cell 3"]
    params = SHORT.model_copy(update={"heads": SHORT.heads.model_copy(update={"num_steps": 10})})
    model = finetune(session[0], labels, params, device="cpu")
    assert model.heads.config.unit_names == ("cell 0", "cell 1", "cell 2")
    assert model.card["left_out"] == {"rare": "4 labelled spikes; 10 are needed"}


@pytest.mark.slow
def test_softmax_heads_are_the_alternative(session):
    recording, truth = session
    params = SHORT.model_copy(update={"heads": SHORT.heads.model_copy(update={"kind": "softmax"})})
    labels, rest = split_labels(truth)
    model = finetune(recording, labels, params, device="cpu")
    assert model.heads.config.kind == "softmax"
    probability = classify(recording, model, truth.sample_index[rest])
    assert (probability.sum(axis=1) <= 1 + 1e-5).all()
    alone = is_alone(truth.sample_index)[rest]
    assert (probability.argmax(axis=1) == truth.unit_index[rest])[alone].mean() > 0.99


def test_labels_outside_the_recording_are_refused(session):
    recording, truth = session
    labels, _ = split_labels(truth)
    labels["cell 1"] = np.append(labels["cell 1"], 3.5)
    with pytest.raises(ModelError, match=r"1 of \d+ labelled spikes of unit 'cell 1' .* the first at 3.5 s"):
        finetune(recording, labels, SHORT, device="cpu")


def test_labels_of_nothing_are_refused(session):
    labels, _ = split_labels(session[1])
    labels["ghost"] = 100.0 + np.random.default_rng(3).uniform(1, 59, 400)
    with pytest.raises(ModelError, match="'ghost' is on no channel"):
        finetune(session[0], labels, SHORT, device="cpu")


@pytest.mark.parametrize("labels", [{}, {"a": np.array([101.0, 102.0])}])
def test_too_few_labels_are_refused(session, labels):
    with pytest.raises(ModelError, match="labelled spikes that a head needs"):
        finetune(session[0], labels, SHORT, device="cpu")


def test_a_model_of_another_probe_is_refused(model):
    with pytest.raises(ModelError, match="for another probe: its heads look at channels such as '3'"):
        check_channels(model, ("0", "1", "2"))
    check_channels(model, ("3", "2", "1", "0", "9"))


def test_times_to_samples_across_a_gap():
    recording = ArrayRecording(
        traces=np.zeros((3000, 1), np.float32),
        sampling_frequency=1000.0,
        segments=(Segment(0, 1000), Segment(2000, 3000)),
        t_start=5.0,
    )
    times = np.array([4.9, 5.0, 5.4996, 5.9994, 6.5, 7.0, 7.9991, 8.1])
    np.testing.assert_array_equal(find_samples(recording, times), [-1, 0, 500, 999, -1, 2000, 2999, -1])
