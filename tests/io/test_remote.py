"""Sessions on the web, from a server of our own: by ranges, and what goes wrong."""

import h5py
import numpy as np
import pytest
from nwb_files import edit, make_file, make_sorting
from web_server import serving

from accm_core.errors import NwbError
from accm_core.io import remote
from accm_core.io.nwb_read import read_nwb
from accm_core.io.nwb_units import read_sorting
from accm_core.io.nwb_write import write_nwb
from accm_core.io.remote import BLOCK_BYTES, MAX_BLOCKS, Address, RemoteFile


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(remote, "PAUSE_S", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as running:
        yield running


@pytest.fixture
def session(server, tmp_path):
    """A session of some blocks, on the disk and served as session.nwb."""
    path = make_file(tmp_path / "session.nwb", num_channels=16, num_samples=300_000)
    server.files["session.nwb"] = path.read_bytes()
    return path


@pytest.fixture(scope="module")
def long_session(tmp_path_factory):
    """A session of which opening looks at some blocks only."""
    return make_file(tmp_path_factory.mktemp("long") / "long.nwb", num_channels=16, num_samples=900_000)


def noise(num_blocks: float) -> bytes:
    return np.random.default_rng(0).bytes(int(num_blocks * BLOCK_BYTES))


def redirect_to(location):
    """An answer to whatever is asked for at /start."""

    def answer(handler):
        if not handler.path.startswith("/start"):
            return False
        handler.reply(302, b"moved", headers={"Location": location})
        return True

    return answer


class TestReading:
    def test_the_same_as_from_the_disk_and_downloaded_once(self, server, long_session):
        server.files["long.nwb"] = long_session.read_bytes()
        with read_nwb(server.address("long.nwb")) as far, read_nwb(long_session) as near:
            looked = sum(stop - start for start, stop in server.ranges)
            for start in (150_000, 0, 299_000):
                np.testing.assert_array_equal(
                    far.get_traces(start, start + 1000), near.get_traces(start, start + 1000)
                )
            assert (far.channel_ids, far.segments, far.warnings) == (
                near.channel_ids,
                near.segments,
                near.warnings,
            )
            assert far.num_bytes == long_session.stat().st_size
            assert looked < far.num_bytes  # opening looks at some of it only
            for _ in range(2):
                np.testing.assert_array_equal(far.get_traces(0, 900_000), near.get_traces(0, 900_000))
        blocks = [block for start, stop in server.ranges for block in range(start, stop, BLOCK_BYTES)]
        assert len(blocks) == len(set(blocks))

    def test_reading_on_asks_for_more_at_a_time(self, server):
        content = server.files["file"] = noise(40.5)
        file = RemoteFile(Address(server.address("file")))
        read = b"".join(file.read(100_000) for _ in range(-(-len(content) // 100_000)))
        assert read == content
        assert file.read(10) == b""
        sizes = [stop - start for start, stop in server.ranges]
        assert len(sizes) < 10
        assert max(sizes) == MAX_BLOCKS * BLOCK_BYTES  # memory stays flat
        file.close()
        file.close()

    def test_places_and_ends(self, server):
        content = server.files["file"] = noise(2.5)
        with RemoteFile(Address(server.address("file"))) as file:
            assert (file.size, file.seek(0, 2), file.tell()) == (len(content), len(content), len(content))
            assert file.seek(-10, 2) == len(content) - 10
            assert file.read(100) == content[-10:]
            file.seek(BLOCK_BYTES - 5)
            assert file.read(10) == content[BLOCK_BYTES - 5 : BLOCK_BYTES + 5]
            assert file.seek(5, 1) == BLOCK_BYTES + 10

    def test_redirects_and_queries(self, server, session):
        server.answer = redirect_to("/session.nwb?signature=secret")
        with read_nwb(server.address("start?token=secret")) as recording:
            assert recording.get_traces(0, 10).shape == (10, 16)
            assert recording.source_name == server.address("start")

    def test_from_allowed_hosts_alone(self, server):
        content = server.files["file"] = noise(0.1)
        server.answer = redirect_to(server.address("file"))
        hosts = frozenset({"example.org", f"127.0.0.1:{server.server_port}"})
        with RemoteFile(Address(server.address("start"), hosts, max_bytes=len(content))) as file:
            assert file.read() == content

    def test_a_server_that_stumbles_is_asked_again(self, server, session):
        count = iter(range(100))
        broken = {"Content-Range": f"bytes 0-999999/{session.stat().st_size}", "ETag": server.etag}

        def stumble(handler):
            number = next(count)
            if number % 3 == 0:
                handler.reply(503)
            elif number % 3 == 1:
                handler.reply(206, bytes(1000), broken, length=BLOCK_BYTES)
                handler.close_connection = True
            return number % 3 != 2

        server.answer = stumble
        with read_nwb(server.address("session.nwb")) as far, read_nwb(session) as near:
            np.testing.assert_array_equal(far.get_traces(0, 300_000), near.get_traces(0, 300_000))
        assert next(count) > 6

    def test_through_the_proxy_of_the_environment(self, server, monkeypatch):
        monkeypatch.setenv("http_proxy", server.address(""))
        far = "http://far.example/file"
        content = server.files[far] = noise(1.5)
        with RemoteFile(Address(far)) as file:
            assert file.read(len(content)) == content

    def test_an_address_tells_no_secrets(self):
        address = Address("https://jane:pass@example.org:8080/a/my%20session.nwb?X-Amz-Signature=1")
        assert str(address) == "https://example.org:8080/a/my%20session.nwb"
        assert address.name == "my session.nwb"


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("gone.nwb", r"There is no file at http://.*/gone.nwb \(404 Not Found\). Check the address"),
            ("empty.nwb", r"empty.nwb is empty \(0 bytes\)"),
            ("page.html", r"page.html is not an HDF5 file"),
            ("part.nwb", r"part.nwb is cut short: it ends at 3000000 bytes"),
        ],
    )
    def test_of_files(self, server, session, name, message):
        whole = server.files["session.nwb"]
        server.files |= {"empty.nwb": b"", "page.html": b"<html>" * 1000, "part.nwb": whole[:3_000_000]}
        with pytest.raises(NwbError, match=message):
            read_nwb(server.address(name))

    @pytest.mark.parametrize(
        ("status", "headers", "message"),
        [
            (200, {}, "sends whole files only, not parts of them"),
            (403, {}, r"refuses .* \(403 Forbidden\)"),
            (206, {"Content-Range": "bytes 0-999/*"}, "does not tell the size"),
            (206, {"Content-Range": "bytes 0-999/" + "9" * 5000}, "does not tell the size"),
            (503, {}, r"refuses .* \(503 Service Unavailable\)"),
        ],
    )
    def test_of_servers(self, server, session, status, headers, message):
        def answer(handler):
            handler.reply(status, headers=headers, length=10**12 if status == 200 else None)
            return True

        server.answer = answer
        with pytest.raises(NwbError, match=message):
            read_nwb(server.address("session.nwb?signature=secret"))

    @pytest.mark.parametrize(
        "location",
        [
            "http://localhost:PORT/file",  # the same server by a name that is not allowed
            "//localhost:PORT/file",
            "http://127.0.0.1/file",
            "http://127.0.0.1:PORT@localhost:PORT/file",
            "http://localhost:PORT\\@127.0.0.1:PORT/file",
            "ftp://127.0.0.1:PORT/file",
            "file:///etc/passwd",
        ],
    )
    def test_of_redirects_to_other_hosts(self, server, location):
        server.files["file"] = noise(0.1)
        server.answer = redirect_to(location.replace("PORT", str(server.server_port)))
        hosts = frozenset({f"127.0.0.1:{server.server_port}"})
        with pytest.raises(
            NwbError, match=r"/start leads to .*, which may not be asked; allowed .* 127.0.0.1:"
        ):
            RemoteFile(Address(server.address("start"), hosts))
        assert server.ranges == []

    def test_of_an_address_that_is_not_allowed_itself(self, server):
        server.files["file"] = noise(0.1)
        for host in ("example.org", "127.0.0.1", f"127.0.0.1:{server.server_port}9"):
            with pytest.raises(NwbError, match=f"may not be asked; allowed are the hosts: {host}"):
                RemoteFile(Address(server.address("file"), frozenset({host})))
        assert server.ranges == []

    @pytest.mark.parametrize(
        ("location", "message"),
        [("/start", "redirects more than 10 times"), ("http://[::1/", "redirects to what is no address")],
    )
    def test_of_redirects_to_nowhere(self, server, location, message):
        server.answer = redirect_to(location)
        with pytest.raises(NwbError, match=message):
            RemoteFile(Address(server.address("start")))

    def test_of_files_that_are_too_large(self, server):
        server.files["file"] = noise(0.1)
        with pytest.raises(NwbError, match=r"file has \d+ bytes; files of at most \d+ bytes are read here"):
            RemoteFile(Address(server.address("file"), max_bytes=len(server.files["file"]) - 1))

    def test_when_nobody_answers(self, server, session):
        address = server.address("session.nwb?signature=secret")
        server.shutdown()
        server.server_close()
        with pytest.raises(NwbError, match=r"Cannot read .*session.nwb: .*refused") as caught:
            read_nwb(address)
        assert "secret" not in str(caught.value)

    def test_of_a_connection_that_breaks_while_it_sorts(self, server, long_session):
        server.files["long.nwb"] = long_session.read_bytes()
        with read_nwb(server.address("long.nwb")) as recording:
            server.answer = lambda handler: bool(handler.connection.close()) or True
            with pytest.raises(NwbError, match=r"Cannot read .*long.nwb: .*Check the address"):
                recording.get_traces(0, 900_000)

    def test_of_a_file_that_changes_meanwhile(self, server):
        server.files["file"] = noise(3)
        with RemoteFile(Address(server.address("file"))) as file:
            server.etag = "two"
            file.seek(2 * BLOCK_BYTES)
            with pytest.raises(NwbError, match="was changed while it was read"):
                file.read(10)

    def test_of_a_full_disk(self, server, session, monkeypatch):
        def fail(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(remote.os, "pwrite", fail)
        with pytest.raises(NwbError, match=r"No space left on device. It needs up to .* or set TMPDIR"):
            read_nwb(server.address("session.nwb"))

    def test_of_samples_in_another_file(self, server, session):
        def move(file):
            del file["acquisition/ElectricalSeries/data"]
            file["acquisition/ElectricalSeries/data"] = h5py.ExternalLink("raw.h5", "/data")

        with h5py.File(session) as file:
            data = file["acquisition/ElectricalSeries/data"][:1000]
        with h5py.File(session.with_name("raw.h5"), "w") as file:
            file["data"] = data
        server.files["linked.nwb"] = edit(session, move).read_bytes()
        with pytest.raises(NwbError, match=r"lie in another file, raw.h5, .*Download both"):
            read_nwb(server.address("linked.nwb"))


class TestWriting:
    def test_a_copy_that_stands_alone(self, server, session, tmp_path):
        with read_nwb(server.address("session.nwb")) as recording:
            recording.get_traces(0, 300_000)
            downloaded = len(server.ranges)
            sorting = make_sorting(recording)
            out = write_nwb(sorting, recording, tmp_path / "out.nwb")
            assert len(server.ranges) == downloaded  # the copy is made from what is here already
        with read_nwb(session) as before, read_nwb(out) as after:
            np.testing.assert_array_equal(after.get_traces(0, 300_000), before.get_traces(0, 300_000))
        back = read_sorting(out)
        np.testing.assert_array_equal(back.sample_index, sorting.sample_index)
        assert back.provenance["source_file"] == server.address("session.nwb")

    def test_by_address_alone_and_over_an_old_file(self, server, session, tmp_path):
        with read_nwb(session) as recording:
            sorting = make_sorting(recording)
        for _ in range(2):
            write_nwb(sorting, server.address("session.nwb"), tmp_path / "out.nwb", overwrite=True)
        assert read_sorting(tmp_path / "out.nwb").num_units == 3

    def test_no_link(self, server, session, tmp_path):
        with (
            read_nwb(server.address("session.nwb")) as recording,
            pytest.raises(NwbError, match=r"cannot link to an address \(http://.*session.nwb\)"),
        ):
            write_nwb(make_sorting(recording), recording, tmp_path / "out.nwb", link=True)
        assert not (tmp_path / "out.nwb").exists()
