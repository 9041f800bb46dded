"""What a request names as its input: what is found, and what is refused."""

import json
import os
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accm_core.io.remote import Address
from service.errors import ServiceError
from service.inputs import InputLimits, resolve_input
from service.schemas import InputRef
from service.settings import read_settings


@pytest.fixture
def folder(tmp_path):
    """Roots `one` and `two`, uploads, and a file beside them."""
    for name in ("one/deep", "two", "uploads"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("one/a.nwb", "one/deep/b.nwb", "two/c.nwb", "uploads/up.nwb", "secret.nwb"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def limits(folder, hosts=("example.org", "Data.Lab:8080")):
    return InputLimits(folder / "uploads", (folder / "one", folder / "two", folder / "gone"), hosts, 1000)


def refused(ref, allowed, status, message):
    with pytest.raises(ServiceError, match=message) as caught:
        resolve_input(ref, allowed)
    assert caught.value.status == status


class TestPaths:
    def test_of_the_roots(self, folder):
        for text in ("a.nwb", "deep/b.nwb", "c.nwb", "deep/../a.nwb", "./deep//b.nwb", "../two/c.nwb"):
            found = resolve_input(InputRef(path=text), limits(folder))
            assert found.read_bytes() == b"x"
            assert found == found.resolve()
        assert resolve_input(InputRef(path=str(folder / "two/c.nwb")), limits(folder)) == folder / "two/c.nwb"

    @pytest.mark.parametrize(
        "text",
        [
            "/etc/passwd",
            "../secret.nwb",
            "deep/../../secret.nwb",
            "/",
            "..",
            "ROOT/secret.nwb",
            "ROOT/gone.nwb",
            "ROOT/one/../secret.nwb",
            "ROOT/onetwo/a.nwb",
            "ROOT/uploads/up.nwb",
        ],
    )
    def test_outside(self, folder, text):
        ref = InputRef(path=text.replace("ROOT", str(folder)))
        refused(ref, limits(folder), 403, "is not in a folder that this server may read")

    def test_links_that_lead_out(self, folder):
        (folder / "one/file").symlink_to(folder / "secret.nwb")
        (folder / "one/folder").symlink_to(folder)
        (folder / "one/inside").symlink_to(folder / "two/c.nwb")
        for text in ("file", "folder/secret.nwb", "folder/gone.nwb"):
            refused(InputRef(path=text), limits(folder), 403, "may read")
        assert resolve_input(InputRef(path="inside"), limits(folder)) == folder / "two/c.nwb"

    def test_a_root_may_be_a_link_itself(self, folder):
        (folder / "root").symlink_to(folder / "two")
        allowed = InputLimits(folder / "uploads", (folder / "root",), (), 1000)
        assert resolve_input(InputRef(path="c.nwb"), allowed) == folder / "two/c.nwb"

    def test_what_is_no_file(self, folder):
        os.mkfifo(folder / "one/pipe")
        (folder / "one/loop").symlink_to(folder / "one/loop")
        for text in ("deep", "pipe", str(folder / "one")):
            refused(InputRef(path=text), limits(folder), 400, "is not a file")
        for text in ("none.nwb", "deep/none/b.nwb", "a.nwb/b.nwb", "loop"):
            refused(InputRef(path=text), limits(folder), 404, "There is no file")
        for text in ("a\0.nwb", "x" * 300):
            refused(InputRef(path=text), limits(folder), 400, "is no path of a file")

    def test_without_roots(self, folder):
        allowed = InputLimits(folder / "uploads", (), (), 1000)
        refused(InputRef(path=str(folder / "one/a.nwb")), allowed, 403, "ACCM_INPUT_ROOTS is not set")

    @given(st.lists(st.sampled_from(["a.nwb", "..", "/", ".", "deep", "\0", "é", "secret.nwb", "only"])))
    def test_never_elsewhere(self, tmp_path_factory, parts):
        root = tmp_path_factory.getbasetemp() / "only"
        (root / "deep").mkdir(parents=True, exist_ok=True)
        (root / "a.nwb").touch()
        (root.parent / "secret.nwb").touch()
        with suppress(ServiceError):
            ref = InputRef(path="/".join(parts) or "/")
            assert resolve_input(ref, InputLimits(root, (root,), (), 1)) == root / "a.nwb"


class TestUploads:
    def test_whole_ones(self, folder):
        assert resolve_input(InputRef(upload="up.nwb"), limits(folder)) == folder / "uploads/up.nwb"

    def test_others(self, folder):
        uploads = folder / "uploads"
        (uploads / "link.nwb").symlink_to(folder / "secret.nwb")
        (uploads / "folder").mkdir()
        (uploads / ".hidden").touch()
        for name in ("none", "../secret.nwb", "link.nwb", "folder", ".hidden", "..", "up.nwb\n", "é", "a/b"):
            refused(InputRef(upload=name), limits(folder), 404, "There is no upload")
        (uploads / ".up.nwb.part").touch()
        refused(InputRef(upload="up.nwb"), limits(folder), 409, "is not complete")


class TestAddresses:
    @pytest.mark.parametrize(
        "url",
        [
            "https://example.org/a.nwb",
            "http://EXAMPLE.org/a?signature=%2F#x",
            "https://example.org:443/a",
            "http://data.lab:8080/a.nwb",
            "HTTPS://example.org",
        ],
    )
    def test_of_the_hosts(self, folder, url):
        address = resolve_input(InputRef(url=url), limits(folder))
        assert address == Address(url, frozenset({"example.org", "data.lab:8080"}), 1000)

    @pytest.mark.parametrize(
        "url",
        [
            "https://evil.example/a",
            "https://example.org.evil.example/a",
            "https://example.org:8443/a",
            "http://data.lab/a",
            "http://127.0.0.1/a",
            "http://[::1]:8080/a",
            "http://169.254.169.254/latest",
            "https://evil.example#@example.org/",
            "https://evil.example?@example.org/",
            "http://0x7f000001/",
            "https://example.org:0/a",
            "https://sub.example.org/a",
            "https://example.org./a",
        ],
    )
    def test_of_others(self, folder, url):
        refused(
            InputRef(url=url), limits(folder), 403, "which may not be asked; allowed are the hosts: data.lab"
        )

    @pytest.mark.parametrize(
        "url",
        [
            "ftp://example.org/a",
            "file:///etc/passwd",
            "example.org/a",
            "//example.org/a",
            "https:///a",
            "x",
            "http://jane:pass@example.org/a",
            "http://example.org@evil.example/a",
            "https://example.org/a b",
            "https://example.org\\@evil.example/",
            "https://exämple.org/",
            "http://[::1",
            "https://example.org/\r\nHost: x",
            "https://example.org:port/",
            "https://example.org:99999/",
        ],
    )
    def test_what_is_none(self, folder, url):
        with pytest.raises(ServiceError, match="url ") as caught:
            resolve_input(InputRef(url=url), limits(folder))
        assert caught.value.status == 400
        assert "jane" not in str(caught.value)

    def test_without_hosts(self, folder):
        ref = InputRef(url="https://example.org/a")
        refused(ref, limits(folder, ()), 403, "ACCM_URL_HOSTS is not set")


def test_limits_of_the_settings_and_through_json(folder):
    settings = read_settings(
        {
            "ACCM_DATA": str(folder),
            "ACCM_INPUT_ROOTS": f"{folder}/one{os.pathsep}{folder}/two",
            "ACCM_URL_HOSTS": "a.org, b.org:8080",
            "ACCM_MAX_UPLOAD": "77",
        }
    )
    found = InputLimits.of(settings)
    roots = (folder / "one", folder / "two")
    assert found == InputLimits(folder / "uploads", roots, ("a.org", "b.org:8080"), 77)
    assert InputLimits.from_dict(json.loads(json.dumps(found.to_dict()))) == found
