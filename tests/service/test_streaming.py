"""Streams over a real socket: from known units, from a calibration, and all the ways that they end."""

import json
import os
import signal
import struct
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import uvicorn
from server_process import free_port
from starlette.applications import Starlette
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from accm_core.client import Client, ServiceError
from accm_core.evaluate import evaluate
from accm_core.models import load_any, store_units
from accm_core.online.plan import make_plan, measure_shanks
from accm_core.online.sorter import OnlineSorter, OnlineSpikes
from accm_core.params import SorterParams
from accm_core.signal.filter import make_bandpass
from accm_core.simulate import simulate
from accm_core.types import ArrayRecording, KnownUnits
from service.streaming import Streams, routes

FS, GAIN = 30_000, 0.195
HELLO = {"protocol": 1, "sampling_frequency": FS, "num_channels": 4, "dtype": "int16"}
LIMIT = 2


@pytest.fixture(scope="module")
def simulated():
    recording, truth = simulate(
        probe="tetrode", num_units=4, snr=(12, 25), rate_hz=12, duration_s=36, burst_share=0, seed=1
    )
    samples = np.rint(recording.get_traces(0, recording.num_samples) / GAIN).astype("<i2")
    return SimpleNamespace(samples=samples, locations=recording.channel_locations, truth=truth)


@pytest.fixture(scope="module")
def units(simulated):
    """The true units, as a sort would know them."""
    templates, bandpass = simulated.truth.templates, make_bandpass(SorterParams().signal, FS)
    wide = np.pad(templates.mean, ((0, 0), (bandpass.margin, bandpass.margin), (0, 0)))
    filtered = np.stack([bandpass.apply(w)[bandpass.margin : -bandpass.margin] for w in wide])
    spread = np.full(len(filtered), np.nan, dtype=np.float32)
    ids = ("0", "1", "2", "3")
    return KnownUnits(simulated.truth.unit_names, filtered, templates.num_before, spread, ids, float(FS))


@pytest.fixture(scope="module")
def service(tmp_path_factory, units):
    """The stream's routes under a real server in this process, with a model 'known' in its registry."""
    data = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCM_DATA", str(data))
        store_units(units, "known", {})
        app = Starlette(routes=routes)
        streams = app.state.server = SimpleNamespace(streams=Streams(data / "streams", LIMIT, "cpu"))
        config = uvicorn.Config(app, host="127.0.0.1", port=free_port(), log_level="error")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield SimpleNamespace(
            address=f"127.0.0.1:{config.port}", data=data, streams=streams.streams, folder=data / "streams"
        )
        server.should_exit = True
        thread.join()


@pytest.fixture
def idle(service):
    """The service without a session."""
    wait_until(lambda: service.streams.describe()["streams"] == [])
    return service


@contextmanager
def socket_to(service, hello=None):
    with connect(f"ws://{service.address}/stream", compression=None) as socket:
        if hello is not None:
            socket.send(json.dumps(hello))
        yield socket


def hello_of(simulated, **changes):
    return HELLO | {"gain_to_uV": GAIN, "channel_locations": simulated.locations.tolist()} | changes


def refusal(socket):
    """The error and the code with which a socket is closed."""
    text = ""
    try:
        while True:
            answer = json.loads(socket.recv(60))
            text = answer.get("error", text)
    except ConnectionClosed as closed:
        return closed.rcvd.code, text


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def message(first, samples):
    return struct.pack("<QIHH", first, *samples.shape, 0) + samples.tobytes()


def sort_here(simulated, units, pieces, num_noise):
    """What the session should give: pieces are (first sample, samples)."""
    noise = np.concatenate([samples for _, samples in pieces])[:num_noise]
    recording = ArrayRecording(
        traces=noise * np.float32(GAIN), sampling_frequency=FS, channel_locations=simulated.locations
    )
    params = SorterParams()
    plan = make_plan(recording, measure_shanks(recording, params), units, params)
    sorter, found = OnlineSorter(plan, first_sample=pieces[0][0]), []
    for first, samples in pieces:
        if first != sorter.next_sample:
            found.append(sorter.end_segment(first))
        found.append(sorter.feed(samples * np.float32(GAIN)))
    found.append(sorter.end_segment())
    sorter.close()
    return OnlineSpikes.join(found)


@pytest.fixture(scope="module")
def known_session(service, simulated):
    """A session with known units: 11 s to measure the noise, a gap, and 3 s that come live."""
    log = SimpleNamespace(replies=[], shown=None)
    cut, stop = 11 * FS, 14 * FS
    log.pieces = [(1000, simulated.samples[:cut]), (1000 + cut + 600, simulated.samples[cut + 600 : stop])]
    with Client(f"http://{service.address}") as client:
        stream = client.stream(FS, 4, gain_to_uV=GAIN, channel_locations=simulated.locations, model="known")
        log.ready = SimpleNamespace(**vars(stream))
        stream.send(simulated.samples[:cut], 1000)
        is_live = False
        while not is_live:
            log.replies.append(stream.receive(100))
            is_live = (log.replies[-1].event or {}).get("event") == "live"
        second = log.pieces[1][1]
        for start in range(0, len(second), 1234):
            stream.send(second[start : start + 1234], 1000 + cut + 600 + start)
        wait_until(lambda: stream.acked_sample > 1000 + stop - 1000)
        log.shown = client.streams()
        log.files = sorted(path.name for path in (service.folder / stream.session).iterdir())
        log.summary = stream.end(60)
        log.replies += list(stream)
        log.acked = stream.acked_sample
        stream.close()
    log.spikes = np.concatenate([reply.spikes for reply in log.replies])
    log.events = [reply.event for reply in log.replies if reply.event is not None]
    return log


def test_a_session_is_told_its_units(known_session, units):
    ready = known_session.ready
    assert ready.is_calibrating
    assert (ready.lookahead_ms, ready.max_samples) == (5.0, 30_000)
    main = units.templates.min(axis=1).argmin(axis=1)
    assert [unit["channel"] for unit in ready.units] == main.tolist()
    assert [unit["name"] for unit in ready.units] == ["0", "1", "2", "3"]
    assert [unit["amplitude_uV"] for unit in ready.units] == pytest.approx(
        units.templates.min(axis=(1, 2)), abs=0.01
    )


def test_events_come_in_order(known_session):
    names = [event["event"] for event in known_session.events]
    now_and_then = ("calibration", "overload")  # the second: we send faster than a recording would
    assert [n for n in names if n not in now_and_then] == ["calibrated", "live", "gap", "end"]
    assert {"event": "gap", "expected": 331_000, "got": 331_600} in known_session.events
    fractions = [event["fraction"] for event in known_session.events if event["event"] == "calibration"]
    assert fractions == sorted(fractions)


def test_its_spikes_are_those_of_the_online_sorter(known_session, simulated, units):
    wanted = sort_here(simulated, units, known_session.pieces, 10 * FS)
    spikes = known_session.spikes
    assert len(wanted) > 400
    np.testing.assert_array_equal(spikes["sample"], wanted.sample_index)
    np.testing.assert_array_equal(spikes["unit"], wanted.unit_index)
    np.testing.assert_array_equal(spikes["channel"], wanted.channel_index)
    np.testing.assert_array_equal(spikes["flags"], wanted.is_overlap)
    np.testing.assert_allclose(spikes["amplitude_uV"], wanted.amplitude_uV, rtol=1e-5)
    np.testing.assert_allclose(spikes["probability"], wanted.probability, rtol=1e-5)


def test_acknowledged_means_reported(known_session):
    replies = [reply for reply in known_session.replies if reply.event is None]
    acked = [reply.acked_sample for reply in replies]
    assert acked == sorted(acked)
    assert known_session.acked == 1000 + 14 * FS
    for before, reply in zip([0, *acked], replies, strict=False):
        assert (reply.spikes["sample"] >= before).all()
        assert (reply.spikes["sample"] < reply.acked_sample).all()


def test_it_ends_with_a_summary_and_leaves_nothing(known_session, service):
    num_samples = sum(len(samples) for _, samples in known_session.pieces)
    assert known_session.summary == {"samples": num_samples, "spikes": len(known_session.spikes)}
    assert known_session.files == []  # what waited was removed when it was sorted
    wait_until(lambda: service.streams.describe() == {"limit": LIMIT, "streams": []})
    assert list(service.folder.iterdir()) == []


def test_it_is_shown(known_session):
    (shown,) = known_session.shown["streams"]
    assert known_session.shown["limit"] == LIMIT
    assert (shown["state"], shown["num_channels"], shown["units"]) == ("live", 4, 4)
    assert shown["samples"] == sum(len(samples) for _, samples in known_session.pieces)
    assert 0 < shown["latency_ms"]["p50"] <= shown["latency_ms"]["p99"]
    assert shown["spikes"] > 300


@pytest.mark.slow
def test_a_calibrated_session_and_one_from_what_it_stored(service, simulated):
    """Units found on the first 20 s, and sorted into ever after; nothing twice where the two meet."""
    with Client(f"http://{service.address}") as client:
        options = {"gain_to_uV": GAIN, "channel_locations": simulated.locations}
        with client.stream(FS, 4, calibration_s=20, save_as="mine", **options) as stream:
            assert (stream.units, stream.is_calibrating) == ([], True)
            for start in range(0, len(simulated.samples), 3000):
                stream.send(simulated.samples[start : start + 3000])
            summary = stream.end(200)
            replies, units = list(stream), stream.units
        spikes = np.concatenate([reply.spikes for reply in replies])
        assert summary == {"samples": 36 * FS, "spikes": len(spikes)}
        trains = {unit["name"]: spikes["sample"][spikes["unit"] == unit["unit"]] / FS for unit in units}
        found = evaluate(trains, simulated.truth.trains(), sampling_frequency=FS)
        assert np.sort(found.accuracy)[-3:].min() > 0.85  # the fourth fires too rarely to be found
        from_sort = (spikes["flags"] & 2) > 0
        seam = 20 * FS - 3000
        assert from_sort.tolist() == (spikes["sample"] < seam).tolist()
        near = {name: t[np.abs(t - seam / FS) < 0.05] for name, t in trains.items()}
        assert all((np.diff(t) > 0.0008).all() for t in near.values())
        stored = load_any("mine").units
        assert stored.names == tuple(unit["name"] for unit in units)
        with pytest.raises(ServiceError, match="There is a model 'mine' already"):
            client.stream(FS, 4, save_as="mine", **options)
        with client.stream(FS, 4, model="mine", **options) as stream:
            assert [unit["name"] for unit in stream.units] == list(stored.names)
            stream.send(simulated.samples[: 12 * FS])
            stream.end(200)
            again = np.concatenate([reply.spikes for reply in stream])
    assert len(again) > 0.9 * (spikes["sample"] < 12 * FS).sum()


@pytest.mark.parametrize(
    ("hello", "code", "text"),
    [
        ("not JSON", 1008, "The first message is not JSON"),
        (HELLO | {"protocol": 9}, 1008, "protocol = 9 is refused"),
        (HELLO | {"model": "nothing"}, 1008, "There is no model 'nothing'"),
        (
            HELLO | {"model": "pretrained"},
            1008,
            "has an encoder alone and knows no units. Give calibration_s",
        ),
        (HELLO | {"model": "known", "num_channels": 3}, 1008, "The model is for another probe"),
        (HELLO | {"model": "known", "calibration_s": 20}, 1008, "holds units that need no calibration"),
    ],
)
def test_a_hello_that_is_refused(service, hello, code, text):
    with socket_to(service) as socket:
        socket.send(hello if isinstance(hello, str) else json.dumps(hello))
        answered, error = refusal(socket)
    assert answered == code
    assert text in error


def test_a_binary_hello_is_refused(service):
    with socket_to(service) as socket:
        socket.send(b"\0")
        assert refusal(socket) == (
            1008,
            'The first message is binary. Send {"protocol": 1, ...} as text.',
        )


def test_a_message_that_is_refused_ends_the_session(service, simulated):
    with socket_to(service, hello_of(simulated)) as socket:
        assert json.loads(socket.recv(60))["ready"]
        socket.send(message(0, simulated.samples[:300]))
        socket.send(message(0, simulated.samples[:300]))
        assert refusal(socket) == (
            1007,
            "A message begins at sample 0; 300 was to come. Send samples in order, each once; leave a gap "
            "where some are lost.",
        )


def test_a_stream_too_short_to_calibrate_on(service, simulated):
    with socket_to(service, hello_of(simulated)) as socket:
        assert json.loads(socket.recv(60))["ready"]
        socket.send(message(0, simulated.samples[:15_000]))
        socket.send('{"end": true}')
        code, text = refusal(socket)
    assert code == 1008
    assert text == "The stream ended after 0.5 s; at least 10 s are needed to begin. Send more."


def test_silence_is_no_stream(service, simulated):
    flat = np.zeros((11 * FS, 4), "<i2")
    with socket_to(service, hello_of(simulated, model="known")) as socket:
        assert json.loads(socket.recv(60))["ready"]
        for start in range(0, len(flat), FS):
            socket.send(message(start, flat[start : start + FS]))
        code, text = refusal(socket)
    assert code == 1008
    assert text.startswith("All 4 channels are constant after the band-pass")


def test_no_more_than_the_limit_at_once_and_none_outlives_its_client(idle, simulated):
    def sessions():
        shown = httpx.get(f"http://{idle.address}/streams", trust_env=False).json()
        return [session["state"] for session in shown["streams"]]

    with socket_to(idle, hello_of(simulated)) as first, socket_to(idle, hello_of(simulated)) as second:
        assert json.loads(first.recv(60))["ready"]
        assert json.loads(second.recv(60))["ready"]
        assert sessions() == ["calibrating", "calibrating"]
        processes = [session.process.pid for session in idle.streams._sessions.values()]
        with socket_to(idle) as third:
            text = f"{LIMIT} sessions are open already, which is the limit. Try again later."
            assert refusal(third) == (1013, text)
    wait_until(lambda: sessions() == [])
    assert all(is_gone(pid) for pid in processes)


def test_a_session_whose_process_dies_says_so(idle, simulated):
    with socket_to(idle, hello_of(simulated)) as socket:
        assert json.loads(socket.recv(60))["ready"]
        (session,) = idle.streams._sessions.values()
        os.kill(session.process.pid, signal.SIGKILL)
        code, text = refusal(socket)
    assert code == 1011
    assert text == "The session's process ended by itself (-9). The server's log may tell why."


def test_closing_ends_all_sessions_and_opening_clears_what_is_left(idle, simulated):
    with socket_to(idle, hello_of(simulated)) as socket:
        assert json.loads(socket.recv(60))["ready"]
        (session,) = idle.streams._sessions.values()
        idle.streams.close()
        assert refusal(socket)[0] == 1011
    assert is_gone(session.process.pid)
    left = idle.folder / "abc" / "raw"
    left.parent.mkdir(parents=True)
    left.touch()
    Streams(idle.folder, LIMIT, "cpu")
    assert not left.exists()
