"""Uploads through the application: whole, in parts, broken off, too large, and with wrong names."""

import hashlib
import os
import time
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from accm_core.errors import AccmError
from service.app import answer_bad_input, answer_refusal
from service.errors import ServiceError
from service.upload_routes import routes
from service.uploads import Uploads

BODY = bytes(range(256)) * 5000
TOTAL = len(BODY)
SHA256 = hashlib.sha256(BODY).hexdigest()


class FakeServer:
    """What the routes use of the server."""

    def __init__(self, folder, **limits):
        self.uploads = Uploads(folder, **({"max_bytes": 10_000_000, "quota": None} | limits))
        self.jobs = self
        self.needed: set[str] = set()

    def needed_uploads(self):
        return self.needed


@pytest.fixture
def make_client(tmp_path):
    clients = []

    def make(**limits):
        app = Starlette(
            routes=routes, exception_handlers={ServiceError: answer_refusal, AccmError: answer_bad_input}
        )
        app.state.server = FakeServer(tmp_path / "data" / "uploads", **limits)
        client = TestClient(app)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(make_client):
    return make_client()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data" / "uploads"


def put_part(client, first, last, total=TOTAL, name="a.nwb", **query):
    headers = {"Content-Range": f"bytes {first}-{last}/{total}"}
    return client.put(f"/uploads/{name}", content=BODY[first : last + 1], headers=headers, params=query)


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


def test_whole_file_is_kept_and_described(client, folder):
    answer = client.put("/uploads/a.nwb", content=BODY, params={"sha256": SHA256.upper()})
    assert (answer.status_code, answer.json()) == (
        201,
        {"name": "a.nwb", "bytes": len(BODY), "sha256": SHA256},
    )
    assert (folder / "a.nwb").read_bytes() == BODY
    known = client.get("/uploads/a.nwb").json()
    assert (known["complete"], known["sha256"], known["total"]) == (True, SHA256, len(BODY))
    assert client.get("/uploads").json() == {"uploads": [known]}
    assert client.delete("/uploads/a.nwb").json() == known
    assert files_of(folder) == []
    assert client.get("/uploads/a.nwb").status_code == 404


def test_parts_are_joined_where_each_ended(client, folder):
    assert put_part(client, 0, 999).status_code == 202
    assert client.get("/uploads/a.nwb").json()["bytes"] == 1000
    assert put_part(client, 1000, 499_999).json() == {
        "name": "a.nwb", "bytes": 500_000, "total": len(BODY), "complete": False,
    }  # fmt: skip
    wrong = put_part(client, 400_000, len(BODY) - 1)
    assert (wrong.status_code, wrong.json()["bytes"]) == (409, 500_000)
    last = put_part(client, 500_000, len(BODY) - 1, sha256=SHA256)
    assert (last.status_code, last.json()["sha256"]) == (201, SHA256)
    assert (folder / "a.nwb").read_bytes() == BODY


def test_upload_can_begin_anew(client, folder):
    put_part(client, 0, 999)
    assert put_part(client, 0, len(BODY) - 1).status_code == 201
    assert (folder / "a.nwb").read_bytes() == BODY


def test_wrong_checksum_leaves_nothing(client, folder):
    answer = client.put("/uploads/a.nwb", content=BODY, params={"sha256": "0" * 64})
    assert answer.status_code == 400
    assert SHA256 in answer.json()["error"]
    assert files_of(folder) == []


def test_name_that_is_taken_is_refused_unless_told(client, folder):
    client.put("/uploads/a.nwb", content=b"first")
    refused = client.put("/uploads/a.nwb", content=b"second")
    assert refused.status_code == 409
    assert (folder / "a.nwb").read_bytes() == b"first"
    assert client.put("/uploads/a.nwb", content=b"second", params={"overwrite": "true"}).status_code == 201
    assert (folder / "a.nwb").read_bytes() == b"second"


def test_upload_that_a_job_needs_stays(client, folder):
    client.put("/uploads/a.nwb", content=b"first")
    client.app.state.server.needed = {"a.nwb"}
    assert client.delete("/uploads/a.nwb").status_code == 409
    assert client.put("/uploads/a.nwb", content=b"x", params={"overwrite": "true"}).status_code == 409
    assert (folder / "a.nwb").read_bytes() == b"first"


@pytest.mark.parametrize("name", [".hidden", "a%2Fb", "..%2Fa", "a b", "x" * 201, "%00", "-a", "ä.nwb"])
def test_bad_names_are_refused(client, folder, name):
    for method in ("GET", "PUT", "DELETE"):
        answer = client.request(method, f"/uploads/{name}", content=b"x" if method == "PUT" else None)
        assert answer.status_code in (400, 404), (method, answer.text)
    assert files_of(folder) == []


@pytest.mark.parametrize(
    "header", ["bytes 0-9", "bytes 5-1/10", "bytes 0-10/10", "items 0-1/2", "bytes -1-4/9", "bytes 0-1/*"]
)
def test_bad_ranges_are_refused(client, folder, header):
    answer = client.put("/uploads/a.nwb", content=b"x" * 10, headers={"Content-Range": header})
    assert (answer.status_code, "Content-Range" in answer.json()["error"]) == (400, True)
    assert files_of(folder) == []


def test_bad_checksum_is_refused(client):
    assert client.put("/uploads/a.nwb", content=b"x", params={"sha256": "abc"}).status_code == 400


@pytest.mark.parametrize(("length", "status"), [(5, 400), (20, 400)])
def test_body_of_another_length_than_its_range(client, length, status):
    answer = client.put("/uploads/a.nwb", content=b"x" * length, headers={"Content-Range": "bytes 0-9/30"})
    assert answer.status_code == status
    assert client.get("/uploads/a.nwb").json()["bytes"] <= 10


def test_too_large_is_refused_by_length_range_and_as_it_comes(make_client, folder, monkeypatch):
    monkeypatch.setattr("service.uploads.CHECK_EVERY_BYTES", 1000)
    client = make_client(max_bytes=100_000)
    assert client.put("/uploads/a.nwb", content=BODY).status_code == 413
    assert put_part(client, 0, 9).status_code == 413
    chunks = (BODY[k : k + 50_000] for k in range(0, len(BODY), 50_000))
    monkeypatch.setattr("service.upload_routes.WRITE_BYTES", 10_000)
    assert client.put("/uploads/b.nwb", content=chunks).status_code == 413
    assert not (folder / "b.nwb").exists()


def test_quota_counts_all_that_is_kept(make_client, tmp_path):
    client = make_client(quota=len(BODY) + 1000)
    assert client.put("/uploads/a.nwb", content=BODY).status_code == 201
    refused = client.put("/uploads/b.nwb", content=BODY)
    assert (refused.status_code, "ACCM_QUOTA" in refused.json()["error"]) == (507, True)


def test_quota_counts_what_others_have_announced(tmp_path):
    uploads = Uploads(tmp_path / "data" / "uploads", max_bytes=1000, quota=1500)
    with uploads.receive("a.nwb", 0, 1000, overwrite=False) as first:
        first.write(bytes(400))
        with (
            pytest.raises(ServiceError, match=r"needs 501 bytes; 10\d\d of the quota of 1500"),
            uploads.receive("b.nwb", 0, 501, overwrite=False),
        ):
            pass
    with uploads.receive("b.nwb", 0, 501, overwrite=False) as second:  # the first is no longer sent
        second.write(bytes(501))


def test_without_a_length_it_may_not_go_on_for_ever(make_client, folder):
    client = make_client(max_bytes=TOTAL - 1)
    assert client.put("/uploads/a.nwb", content=iter([BODY[:1000], BODY[1000:]])).status_code == 413
    assert list(folder.iterdir()) == []  # there is no going on with it


def test_list_while_uploads_go(client, folder, monkeypatch):
    client.put("/uploads/a.nwb", content=BODY)
    client.put("/uploads/b.nwb", content=BODY)
    describe = Uploads.describe

    def describe_late(self, name):
        (folder / "a.nwb").unlink(missing_ok=True)
        return describe(self, name)

    monkeypatch.setattr(Uploads, "describe", describe_late)
    assert [upload["name"] for upload in client.get("/uploads").json()["uploads"]] == ["b.nwb"]


def test_used_bytes_while_files_go(client, folder, monkeypatch, tmp_path):
    client.put("/uploads/a.nwb", content=BODY)
    walk = os.walk
    monkeypatch.setattr(
        "service.uploads.os.walk", lambda top: [(f, d, [*names, "gone"]) for f, d, names in walk(top)]
    )
    assert client.app.state.server.uploads.used_bytes() >= TOTAL


def test_links_are_none_of_ours(client, folder, tmp_path):
    (tmp_path / "secret").write_bytes(BODY)
    (folder / "link.nwb").symlink_to(tmp_path / "secret")
    assert client.get("/uploads").json() == {"uploads": []}
    assert client.get("/uploads/link.nwb").status_code == 404
    assert client.delete("/uploads/link.nwb").status_code == 404


def test_disk_that_is_full_while_it_is_written(tmp_path):
    uploads = Uploads(tmp_path / "data" / "uploads", max_bytes=1000, quota=None)

    def fill():
        with (
            uploads.receive("a.nwb", 0, None, overwrite=False) as incoming,
            Path("/dev/full").open("wb", buffering=0) as full,
        ):
            incoming._file = full
            incoming.write(b"x")

    with pytest.raises(ServiceError, match="takes no more: No space left") as caught:
        fill()
    assert caught.value.status == 507
    assert [path.name for path in uploads.folder.iterdir() if path.suffix == ".part"] == []


def test_full_disk_is_refused(client, monkeypatch):
    monkeypatch.setattr("service.uploads.SPARE_BYTES", 1 << 60)
    assert client.put("/uploads/a.nwb", content=BODY).status_code == 507


def test_old_uploads_go_unless_needed(client, folder):
    for name in ("old.nwb", "needed.nwb", "new.nwb"):
        client.put(f"/uploads/{name}", content=b"x")
    put_part(client, 0, 9, name="part.nwb")
    for path in folder.iterdir():
        if "new" not in path.name:
            os.utime(path, (1000, 1000))
    client.app.state.server.uploads.remove_old(time.time() - 100, needed={"needed.nwb"})
    assert files_of(folder) == [".needed.nwb.json", ".new.nwb.json", "needed.nwb", "new.nwb"]
