"""The report: what it counts, what it shows, how large it gets, and that it lets nothing in."""

import base64
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from accm_core.errors import AccmError
from accm_core.report import check_report_path, render_report, write_report
from accm_core.report.correlogram import auto_correlogram, cross_correlogram, interval_histogram
from accm_core.report.payload import (
    MAX_SPIKES,
    find_similar_units,
    locate_units,
    make_payload,
    pack,
    sample_evenly,
    spike_limits,
)

MAX_BYTES = 5e6  # for 100 units


def unpack(packed, dtype):
    return np.frombuffer(base64.b64decode(packed["data"]), dtype) * packed["scale"]


def data_of(page: str) -> dict:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    return json.loads(found.group(1))


# ---- correlograms ----


def slow_lags(times, others, window_s, bin_s, same):
    edges = np.linspace(-window_s, window_s, round(2 * window_s / bin_s) + 1)
    lags = [b - a for i, a in enumerate(times) for j, b in enumerate(others) if not (same and i == j)]
    return np.histogram(lags, edges)[0]


@pytest.mark.parametrize("max_pairs", [5, 2_000_000])
def test_correlograms_match_a_double_loop(monkeypatch, max_pairs):
    monkeypatch.setattr("accm_core.report.correlogram.MAX_PAIRS", max_pairs)
    rng = np.random.default_rng(0)
    times, others = np.sort(rng.uniform(0, 2, 150)), np.sort(rng.uniform(0, 2, 90))
    keys = {"window_s": 0.05, "bin_s": 0.005}
    assert auto_correlogram(times, **keys).tolist() == slow_lags(times, times, 0.05, 0.005, True).tolist()
    assert (
        cross_correlogram(times, others, **keys).tolist()
        == slow_lags(times, others, 0.05, 0.005, False).tolist()
    )


def test_auto_correlogram_of_a_clock():
    counts = auto_correlogram(np.arange(5) * 0.0101, window_s=0.025, bin_s=0.005)
    assert counts.tolist() == [3, 0, 4, 0, 0, 0, 0, 4, 0, 3]


def test_coincident_spikes_are_counted_both_ways():
    assert auto_correlogram(np.array([1.0, 1.0]), window_s=0.002, bin_s=0.001).tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("times", [[], [3.0]])
def test_too_few_spikes_give_zeros(times):
    few, some = np.array(times), np.array([1.0, 2.0])
    assert auto_correlogram(few, window_s=0.01, bin_s=0.005).tolist() == [0, 0, 0, 0]
    assert cross_correlogram(few, some, window_s=0.01, bin_s=0.005).tolist() == [0, 0, 0, 0]
    assert cross_correlogram(some, few, window_s=0.01, bin_s=0.005).tolist() == [0, 0, 0, 0]
    assert interval_histogram(few, np.array([0.1, 1.0])).tolist() == [0]


def test_intervals_beyond_the_edges_are_counted_in_the_outer_bins():
    times = np.array([0.0, 0.001, 0.021, 50.0])
    assert interval_histogram(times, np.array([0.01, 0.1, 1.0, 10.0])).tolist() == [2, 0, 1]


# ---- the parts of the payload ----


def test_units_lie_where_their_amplitude_is(make_sorting):
    sorting = make_sorting(num_units=6)
    places = locate_units(sorting)
    main = sorting.channel_locations[sorting.templates.main_channel]
    assert np.abs(places - main).max() < 25
    flat = replace(sorting.templates, mean=np.zeros_like(sorting.templates.mean))
    assert locate_units(replace(sorting, templates=flat)) == pytest.approx(
        np.tile(sorting.channel_locations.mean(axis=0), (6, 1))
    )


def test_similar_units_are_the_nearest_by_cosine():
    shape = np.array([[0.0, -1.0, 0.5], [0.0, -0.5, 0.2]]).T
    other = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]).T
    rows, cosine = find_similar_units(np.stack([shape, other, 3 * shape, np.zeros_like(shape)]), 2)
    assert rows[0, 0] == 2
    assert rows[2, 0] == 0
    assert cosine[0, 0] == pytest.approx(1.0)
    assert np.isfinite(cosine).all()
    assert not (rows == np.arange(4)[:, None]).any()  # no unit is like itself
    assert find_similar_units(shape[None], 3)[0].shape == (1, 0)


def test_spike_limits_bound_the_sum_and_spare_small_units(make_sorting, monkeypatch):
    sorting = make_sorting(num_units=5)
    counts = np.bincount(sorting.unit_index)
    assert spike_limits(sorting).tolist() == counts.tolist()
    monkeypatch.setattr("accm_core.report.payload.MAX_SPIKES", 600)
    limits = spike_limits(sorting)
    assert limits.sum() <= 600
    assert limits.min() == min(counts.min(), limits.max())
    assert np.minimum(counts, limits.max() + 1).sum() > 600  # and no less than what fits
    assert MAX_SPIKES > 600


@pytest.mark.parametrize("limit", [1, 3, 10, 100])
def test_sample_is_even_and_ordered(limit):
    rows = sample_evenly(np.arange(50), limit)
    assert len(rows) == min(limit, 50)
    assert (np.diff(rows) > 0).all()
    assert rows[0] == 0


@pytest.mark.parametrize(("dtype", "low"), [("<i2", -300.0), ("<u2", 0.0)])
def test_packing_keeps_four_digits(dtype, low):
    values = np.random.default_rng(0).uniform(low, 300, 1000)
    assert unpack(pack(values, dtype), dtype) == pytest.approx(values, abs=300 / 32_000)
    assert unpack(pack(np.zeros(3), dtype), dtype).tolist() == [0, 0, 0]
    assert pack(np.zeros(0), dtype)["data"] == ""


def test_payload_tells_what_the_sorting_holds(make_sorting):
    sorting = make_sorting(num_units=5, warnings=("one", "two"), bad_channel_ids=("ch99",))
    provenance = {**sorting.provenance, "read_warnings": ["one"], "left_out": [["ch7", "dead"]]}
    data = make_payload(replace(sorting, provenance=provenance), "a session")
    assert data["headline"]["spikes"] == len(sorting.sample_index)
    assert data["headline"]["warnings"] == ["one", "two"]
    assert data["headline"]["badChannels"] == ["ch99 (bad)", "ch7 (dead)"]
    assert [unit["label"] for unit in data["units"]] == list(sorting.labels)
    unit = data["units"][2]
    train = sorting.spike_times[sorting.unit_index == 2]
    assert unit["spikes"] == len(train)
    assert sum(unit["isi"]) == len(train) - 1
    assert unit["reason"] == "isi_violations_ratio 0.71 > 0.5"
    assert unit["channels"][0] == unit["main"] == int(sorting.templates.main_channel[2])
    middle = len(unit["acg"]) // 2
    assert unit["acg"][middle - 3 : middle + 3] == [0] * 6  # 1.5 ms on either side: the units are refractory
    mean = unpack(unit["mean"], "<i2").reshape(len(unit["channels"]), -1)
    assert mean == pytest.approx(sorting.templates.mean[2][:, unit["channels"]].T, abs=0.02)
    offsets = data["spikes"]["offsets"]
    drawn = unpack(data["spikes"]["time"], "<u2")[offsets[2] : offsets[3]]
    assert drawn == pytest.approx(train, abs=0.001)


def test_numbers_that_are_missing_are_null(make_sorting):
    unit = make_payload(make_sorting(num_units=1, duration_s=20), "x")["units"][0]
    assert unit["presence_ratio"] is None
    assert unit["amplitude_cutoff"] is None
    assert unit["similar"] == []
    without = replace(make_sorting(num_units=1), quality={})
    assert make_payload(without, "x")["units"][0]["snr"] is None


# ---- the page ----


CASES = {
    "usual": {},
    "no units": {"num_units": 0},
    "one unit, one wire": {"num_units": 1, "num_channels": 1, "has_geometry": False},
    "no positions": {"num_units": 3, "num_channels": 4, "has_geometry": False},
    "nothing embedded": {"num_embedded": 0},
}


@pytest.mark.parametrize("case", CASES)
def test_page_renders(make_sorting, case):
    page = render_report(make_sorting(**CASES[case]), title="session.nwb")
    data = data_of(page)
    assert len(data["units"]) == CASES[case].get("num_units", 5)
    assert data["hasGeometry"] == CASES[case].get("has_geometry", True)
    assert "{{" not in page.split('<script id="data"')[0]


def test_page_asks_the_network_for_nothing(make_sorting):
    page = render_report(make_sorting(), title="x")
    assert re.findall(r"""(?:src|href|action)\s*=|url\(|@import|https?:|//[a-z]+\.""", page) == []
    assert "default-src 'none'" in page


def test_what_the_session_says_stays_text(make_sorting):
    hostile = '</script><script>alert(1)</script><img src=x onerror="alert(2)">{{data}}'
    sorting = make_sorting(num_units=2, warnings=(hostile,))
    sorting = replace(sorting, label_reasons=(hostile, ""), channel_ids=(hostile, *sorting.channel_ids[1:]))
    page = render_report(sorting, title=hostile)
    assert "<img" not in page
    assert "<script>alert" not in page
    assert data_of(page)["headline"]["warnings"] == [hostile]
    assert page.count("</script>") == 2


def test_provenance_may_hold_what_json_does_not(make_sorting, tmp_path):
    sorting = make_sorting(num_units=1)
    odd = {"seed": np.int64(3), "where": tmp_path, "limit": float("nan"), "long": list(range(5000))}
    shown = data_of(render_report(replace(sorting, provenance=odd), title="x"))["provenance"]
    assert shown == {"seed": 3, "where": str(tmp_path), "limit": "NaN"}


def test_hundred_units_fit_in_five_megabytes(make_sorting):
    sorting = make_sorting(num_units=100, num_channels=64, duration_s=600, rate_hz=20)
    page = render_report(sorting, title="x")
    assert len(sorting.sample_index) > 1e6
    assert len(page.encode()) < MAX_BYTES


def test_same_sorting_same_page(make_sorting):
    assert render_report(make_sorting(), title="x") == render_report(make_sorting(), title="x")


# ---- the file ----


def test_report_is_replaced_and_leaves_no_other_file(make_sorting, tmp_path):
    file = tmp_path / "r.html"
    write_report(make_sorting(num_units=1), file, title="first")
    write_report(make_sorting(num_units=1), file, title="second")
    assert "second" in file.read_text()
    assert list(tmp_path.iterdir()) == [file]


def test_foreign_file_is_kept(make_sorting, tmp_path):
    file = tmp_path / "r.html"
    file.write_text("<html>notes</html>")
    with pytest.raises(AccmError, match="is not a report of accm"):
        write_report(make_sorting(num_units=1), file, title="x")
    assert file.read_text() == "<html>notes</html>"


@pytest.mark.parametrize("name", ["none/r.html", "folder"])
def test_path_that_cannot_be_written_is_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(AccmError):
        check_report_path(tmp_path / name)


def test_report_that_fails_leaves_the_old_one(make_sorting, tmp_path, monkeypatch):
    file = tmp_path / "r.html"
    write_report(make_sorting(num_units=1), file, title="old")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report(make_sorting(num_units=1), file, title="new")
    assert "old" in file.read_text()
    assert list(tmp_path.iterdir()) == [file]
