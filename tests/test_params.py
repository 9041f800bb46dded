"""Parameters: what is accepted, what is refused and in which words."""

import pytest

from accm_core.errors import ParamsError
from accm_core.params import SorterParams, describe_params, load_params, to_samples, validate_params


def test_defaults_are_valid_and_survive_a_round_trip():
    params = SorterParams()
    assert validate_params(params.model_dump()) == params


def test_file_and_settings_are_merged_and_settings_win(tmp_path):
    file = tmp_path / "p.toml"
    file.write_text("[detect]\nthreshold = 7\npeak_sign = 'both'\n[signal]\nfreq_min_hz = 250\n")
    params = load_params(file, ["detect.threshold=6.5", "signal.detect_bad_channels=false"])
    assert params.detect.threshold == 6.5
    assert params.detect.peak_sign == "both"
    assert params.signal.freq_min_hz == 250
    assert params.signal.detect_bad_channels is False


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("detect.peak_sign=pos", "pos"),  # a bare word
        ('detect.peak_sign="pos"', "pos"),
        (" detect.peak_sign = pos ", "pos"),
    ],
)
def test_spelling_of_a_setting(setting, expected):
    assert load_params(settings=[setting]).detect.peak_sign == expected


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            "detect.treshold=6",
            ["Unknown parameter 'detect.treshold'", "detect.threshold", "detect.peak_sign"],
        ),
        ("dtect.threshold=6", ["Unknown parameter 'dtect'", "detect.threshold", "signal.freq_min_hz"]),
        ("detect.threshold=99", ["detect.threshold = 99", "less than or equal to 50"]),
        ("detect.threshold=high", ["detect.threshold = 'high'", "valid number"]),
        ("detect.peak_sign=up", ["detect.peak_sign = 'up'", "'neg'"]),
        ("run.chunk_s=nan", ["run.chunk_s"]),
        ("threshold=6", ["Cannot read --set 'threshold=6'", "GROUP.NAME=VALUE"]),
        ("detect.threshold", ["Cannot read --set"]),
        ("detect.=3", ["Cannot read --set"]),
    ],
)
def test_refusals_say_what_and_why(setting, words):
    with pytest.raises(ParamsError) as error:
        load_params(settings=[setting])
    for word in words:
        assert word in str(error.value)


def test_every_refusal_is_listed():
    with pytest.raises(ParamsError) as error:
        load_params(settings=["detect.threshold=99", "detect.foo=1", "run.chunk_s=0"])
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize("text", ["[detect\n", "\xff\xfe"])
def test_unreadable_file(tmp_path, text):
    file = tmp_path / "p.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ParamsError, match="Cannot read parameters from"):
        load_params(file)


def test_missing_file(tmp_path):
    with pytest.raises(ParamsError, match="Cannot read parameters from"):
        load_params(tmp_path / "none.toml")


def test_group_that_is_a_value(tmp_path):
    file = tmp_path / "p.toml"
    file.write_text("detect = 3\n")
    with pytest.raises(ParamsError, match="table"):
        load_params(file, ["detect.threshold=6"])
    with pytest.raises(ParamsError, match="detect"):
        load_params(file)


def test_every_parameter_is_described():
    rows = describe_params()
    assert "detect.threshold" in [name for name, _, _ in rows]
    assert [name for name, _, text in rows if not text] == []


def test_params_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        SorterParams().detect.threshold = 3


@pytest.mark.parametrize(("ms", "expected"), [(1.0, 30), (0.4, 12), (0.0001, 1)])
def test_to_samples(ms, expected):
    assert to_samples(ms, 30_000.0) == expected
