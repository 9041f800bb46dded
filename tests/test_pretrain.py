"""Pretraining end to end: what is drawn, sessions of one's own, and what is refused."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from accm_core import pretrain as module
from accm_core.cli import app
from accm_core.errors import NwbError, ParamsError
from accm_core.learning.adapt import adapt_encoder
from accm_core.learning.checkpoint import read_model, save_model
from accm_core.learning.encoder import fit_encoder
from accm_core.learning.lessons import SHIPPED, WINDOW, read_pretrained
from accm_core.models import load_model
from accm_core.params import LearnParams, SorterParams
from accm_core.pretrain import draw_simulation, pretrain
from accm_core.simulate import make_simulation_params, simulate
from accm_core.simulation.nwb import write_simulation

QUICK = SorterParams(learn={"batch_size": 16})


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(module, "STEPS_PER_RECORDING", 2)
    monkeypatch.setattr(module, "DURATION_S", 4.0)


def weights(model):
    return np.concatenate([value.numpy().ravel() for value in model.encoder.state_dict().values()])


def test_all_kinds_of_recordings_are_drawn_and_all_can_be_simulated():
    drawn = [make_simulation_params(**draw_simulation(np.random.default_rng(k))) for k in range(200)]
    assert {params.probe for params in drawn} == set(module.PROBE_SHARES)
    assert len({params.num_units for params in drawn}) > 10
    assert {params.synchrony for params in drawn} == {0.0, 0.1, 0.3}


def test_simulated_recordings_alone(short, tmp_path):
    shares = []
    model = pretrain(num_recordings=2, params=QUICK, on_progress=lambda stage, share: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert model.card["training"] == {"simulated_recordings": 2, "sessions": [], "steps": 4}
    again = read_model(save_model(model, tmp_path / "m.safetensors"))
    np.testing.assert_array_equal(weights(again), weights(model))
    assert again.sha256 == model.sha256
    same, other = (pretrain(num_recordings=2, params=QUICK, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(weights(same), weights(model))
    assert (weights(other) != weights(model)).any()


def test_a_session_changes_what_is_learned(short, tmp_path, caplog):
    recording, truth = simulate(duration_s=8, num_units=3, snr=(12, 20), rate_hz=20.0, firing="poisson")
    write_simulation(tmp_path / "spikes.nwb", recording, truth)
    model = pretrain([tmp_path / "spikes.nwb"], num_recordings=1, params=QUICK)
    assert model.card["training"]["sessions"] == ["spikes.nwb"]
    assert (weights(model) != weights(pretrain(num_recordings=2, params=QUICK))).any()
    silent, none = simulate(duration_s=3, num_units=0, background_units=0)
    write_simulation(tmp_path / "silent.nwb", silent, none)
    pretrain([tmp_path / "silent.nwb"], num_recordings=1, params=QUICK)
    assert "silent.nwb has too few spikes to learn from" in caplog.text


def test_the_command_puts_the_model_into_the_registry(short, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCM_DATA", str(tmp_path))
    arguments = ["pretrain", "--name", "mine", "--recordings", "1", "--set", "learn.batch_size=16"]
    done = CliRunner().invoke(app, [*arguments, "--json", "--quiet"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert load_model("mine").sha256 == result["sha256"]
    assert result["simulated_recordings"] == 1
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2
    assert "There is a model 'mine' already" in again.stderr


def test_nothing_to_learn_from_is_refused(tmp_path):
    with pytest.raises(ParamsError, match="Nothing to learn from"):
        pretrain(num_recordings=0)
    with pytest.raises(NwbError, match="no file"):
        pretrain([tmp_path / "absent.nwb"], num_recordings=0)


@pytest.mark.parametrize("probe", ["mono", "tetrode", "neuropixels"])
def test_the_shipped_weights_know_spikes_they_have_not_seen(probe):
    channels = None if probe != "neuropixels" else 16
    recording, _ = simulate(seed=424242, probe=probe, num_channels=channels, duration_s=15, rate_hz=10.0)
    (lesson,) = module._survey_lessons(recording, SorterParams(), seed=0)
    start = fit_encoder(read_pretrained().encoder, WINDOW, lesson.window, lesson.waveforms.shape[2], 8)
    result = adapt_encoder(
        start,
        lesson.waveforms,
        lesson.noise,
        LearnParams(num_steps=0),
        lesson.window.sampling_frequency,
        device=torch.device("cpu"),
        seed=0,
    )
    assert result.agreement > result.agreement_pca + 0.1


def test_the_shipped_weights_are_small_and_say_how_they_were_made():
    card = read_pretrained().card
    assert SHIPPED.stat().st_size < 10e6
    assert card["training"]["sessions"] == []
    assert card["training"]["simulated_recordings"] > 100
    assert card["seed"] == 0
