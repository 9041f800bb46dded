"""Hostile HDF5 files, one trick each."""

import os

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t
from nwb_files import make_file
from web_server import serving

from accm_core.io.remote import Address
from service import inputs, inspect_hdf5
from service.errors import ServiceError
from service.inputs import check_file
from service.inspect_hdf5 import RefusedError, inspect_path

TERA = 1 << 40


def make(path, edit):
    with h5py.File(path, "w") as file:
        edit(file)
    return path


def fill(file):
    file["data"] = np.arange(10.0)


def refused(path, message, roots=()):
    with pytest.raises(RefusedError, match=message):
        inspect_path(path, roots)


class TestWhatIsFine:
    def test_a_session_in_a_process_of_its_own(self, tmp_path):
        check_file(make_file(tmp_path / "session.nwb"), ())

    def test_all_that_sessions_have(self, tmp_path):
        def build(file):
            fill(file)
            file["empty"] = h5py.Empty("f4")
            file["scalar"], file["text"] = 5, "text"
            file.create_dataset("packed", data=np.zeros((5000, 4), "i2"), compression="gzip", shuffle=True)
            file.create_dataset("grown", (0, 4), "f4", maxshape=(None, 4), chunks=(100, 4))
            file["deep/er/group/link"] = h5py.SoftLink("/data")
            file["deep/hard"], file["nowhere"] = file["data"], h5py.SoftLink("/not/there")
            layout = h5py.VirtualLayout((20,), "f8")
            layout[:10] = layout[10:] = h5py.VirtualSource(".", "data", (10,))
            file.create_virtual_dataset("joined", layout)
            file["kind"] = np.dtype("i4")

        inspect_path(make(tmp_path / "a.h5", build), ())

    def test_large_arrays_of_large_files(self, tmp_path, monkeypatch):
        path = make(
            tmp_path / "a.h5", lambda file: file.create_dataset("z", (1000, 1000), "f4", chunks=(1, 1000))
        )
        monkeypatch.setattr(inspect_hdf5, "FREE_BYTES", 1_000_000)
        refused(path, r"/z unpacks to 4e\+06 bytes, from a file of \d{4}; at most 1000 times")
        with path.open("ab") as file:
            file.truncate(5000)
        inspect_path(path, ())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a.h5 is empty \(0 bytes\)"),
        (b"<html>" * 1000, "a.h5 is not an HDF5 file"),
        (b"\x89HDF\r\n\x1a\n", "a.h5 (cannot be opened: Unable|is cut short)"),
        (b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 8, "a.h5 cannot be opened: Unable"),
    ],
)
def test_no_hdf5(tmp_path, content, message):
    path = tmp_path / "a.h5"
    path.write_bytes(content)
    refused(path, message)


def test_cut_short(tmp_path):
    path = make_file(tmp_path / "a.nwb")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    refused(path, "a.nwb is cut short: it ends at")


def test_while_it_is_written(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        fill(file)
        file.flush()
        with pytest.raises(ServiceError, match=r"a\.h5 is open in another program"):
            check_file(tmp_path / "a.h5", ())
    check_file(tmp_path / "a.h5", ())


class TestOutside:
    """`here` is in the root, `out.h5` beside it."""

    @pytest.fixture
    def here(self, tmp_path):
        folder = tmp_path / "here"
        folder.mkdir()
        make(folder / "raw.h5", fill)
        make(tmp_path / "out.h5", fill)
        return folder

    def link(self, here, name, where="a.h5"):
        return make(here / where, lambda file: file.__setitem__("data", h5py.ExternalLink(name, "/data")))

    def virtual(self, here, name, where="a.h5"):
        def build(file):
            layout = h5py.VirtualLayout((10,), "f8")
            layout[:] = h5py.VirtualSource(name, "data", (10,))
            file.create_virtual_dataset("data", layout)

        return make(here / where, build)

    @pytest.mark.parametrize("way", ["link", "virtual"])
    def test_links_and_virtual_arrays(self, here, way):
        way = getattr(self, way)
        for name in ("raw.h5", str(here / "raw.h5"), "../here/raw.h5"):
            path = way(here, name)
            inspect_path(path, (here.parent / "other", here))
            refused(path, r"/data leads to another file, '.*raw.h5', which only files under ACCM_INPUT_ROOTS")
        for name in ("../out.h5", str(here.parent / "out.h5"), "/nowhere/raw.h5", "/dev/zero"):
            refused(way(here, name), "is not in a folder of ACCM_INPUT_ROOTS", (here,))

    def test_symlinks_lead_out_too(self, here):
        (here / "sym.h5").symlink_to(here.parent / "out.h5")
        (here / "folder").symlink_to(here.parent)
        for name in ("sym.h5", "folder/out.h5", "/nowhere/sym.h5"):
            refused(self.link(here, name), "is not in a folder", (here,))

    def test_what_is_not_there_or_no_file(self, here):
        os.mkfifo(here / "pipe")
        refused(self.link(here, "gone.h5"), "which is not there", (here,))
        for name in ("pipe", "."):
            refused(self.link(here, name), "which is no file", (here,))
        (here / "text.h5").write_text("text")
        refused(self.link(here, "text.h5"), "text.h5 is not an HDF5 file", (here,))

    def test_from_file_to_file(self, here):
        self.link(here, "../out.h5", "b.h5")
        refused(self.link(here, "b.h5"), "is not in a folder", (here,))
        self.link(here, "a.h5", "b.h5")
        refused(here / "a.h5", "lead back to it", (here,))
        for k in range(6):
            self.link(here, f"c{k + 1}.h5" if k < 5 else "raw.h5", f"c{k}.h5")
        refused(here / "c0.h5", "from one to the next more than 4 times", (here,))
        inspect_path(here / "c3.h5", (here,))

    def test_by_the_name_that_hdf5_opens(self, here):
        """A file that is reached by a symlink leads on from there, not from where it lies."""
        for name in ("near", "far"):
            (here / name).mkdir()
        self.link(here, "raw.h5", "far/b.h5")
        make(here / "far/raw.h5", fill)
        (here / "near/b.h5").symlink_to(here / "far/b.h5")
        inspect_path(self.link(here, "near/b.h5"), (here,))
        (here / "near/raw.h5").symlink_to(here.parent / "out.h5")
        refused(here / "a.h5", "is not in a folder", (here,))

    def test_patterns_of_names(self, here):
        def build(file):
            here, there = h5s.create_simple((1, 10), (h5s.UNLIMITED, 10)), h5s.create_simple((10,))
            here.select_hyperslab((0, 0), (h5s.UNLIMITED, 1), stride=(1, 10), block=(1, 10))
            properties = h5p.create(h5p.DATASET_CREATE)
            properties.set_virtual(here, b"raw%b.h5", b"data", there)
            h5d.create(file.id, b"data", h5t.NATIVE_DOUBLE, here, properties)

        path = make(here / "a.h5", build)
        refused(path, "files named by a pattern, 'raw%b.h5'", (here,))

    def test_raw_files(self, here):
        raw = here / "raw.bin"
        raw.write_bytes(bytes(80))
        path = make(
            here / "a.h5", lambda f: f.create_dataset("data", (10,), "f8", external=[(str(raw), 0, 80)])
        )
        refused(path, "The samples of /data lie in a raw file outside of it", (here,))

    def test_on_the_web(self, here, monkeypatch):
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with serving() as server:
            hosts = frozenset({f"127.0.0.1:{server.server_port}"})
            server.files["good"] = (here / "raw.h5").read_bytes()
            server.files["bad"] = self.link(here, "raw.h5").read_bytes()
            check_file(Address(server.address("good"), hosts, 1 << 20), (here,))
            for name, message in (
                ("bad", "leads to another file, 'raw.h5'"),
                ("gone", "There is no file at"),
            ):
                with pytest.raises(ServiceError, match=message) as caught:
                    check_file(Address(server.address(name) + "?secret", hosts, 1 << 20), (here,))
                assert caught.value.status == 400
                assert "secret" not in str(caught.value)


class TestBombs:
    @pytest.mark.parametrize(
        ("shape", "dtype", "chunks", "message"),
        [
            ((TERA,), "i1", (1 << 20,), r"/z unpacks to 1.1e\+12 bytes"),
            ((TERA,), "i1", None, r"/z unpacks to 1.1e\+12 bytes"),
            ((1 << 31, 1 << 31, 1 << 31), "f8", (9, 9, 9), r"/z unpacks to 7.92e\+28 bytes"),
            ((20,), "S2000000000", None, r"/z unpacks to 4e\+10 bytes"),
            ((1 << 31,), "i1", ((1 << 30) + 1,), r"chunks of 1.07e\+09"),
        ],
    )
    def test_sizes(self, tmp_path, shape, dtype, chunks, message):
        path = make(tmp_path / "a.h5", lambda file: file.create_dataset("z", shape, dtype, chunks=chunks))
        refused(path, message)

    @pytest.mark.parametrize("filters", [["set_deflate"] * 2, ["set_shuffle"] * 2], ids=str)
    def test_packed_twice(self, tmp_path, filters):
        def build(file):
            properties = h5p.create(h5p.DATASET_CREATE)
            properties.set_chunk((100,))
            for name in filters:
                getattr(properties, name)()
            h5d.create(file.id, b"z", h5t.NATIVE_INT16, h5s.create_simple((1000,)), properties)

        refused(make(tmp_path / "a.h5", build), "/z is packed more than once")

    def test_a_chunk_that_is_more_packed_than_unpacked(self, tmp_path):
        def build(file):
            array = file.create_dataset("z", (200,), "i2", chunks=(100,), compression="gzip")
            array.id.write_direct_chunk((100,), bytes(2_000_000))

        refused(make(tmp_path / "a.h5", build), "A chunk of /z takes 2000000 bytes packed and 200 unpacked")

    def test_objects(self, tmp_path, monkeypatch):
        monkeypatch.setattr(inspect_hdf5, "MAX_OBJECTS", 39)

        def build(file):
            for k in range(20):
                file[f"g{k}/x"] = h5py.SoftLink("/")

        refused(make(tmp_path / "a.h5", build), "holds more than 39 objects")
        monkeypatch.setattr(inspect_hdf5, "MAX_OBJECTS", 200)
        refused(tmp_path / "a.h5", "in a circle")  # of the soft links

    def test_depth(self, tmp_path):
        inspect_path(make(tmp_path / "a.h5", lambda file: file.create_group("/".join("g" * 32))), ())
        refused(
            make(tmp_path / "b.h5", lambda file: file.create_group("/".join("g" * 33))), "more than 32 deep"
        )


def hard_circle(file):
    file.create_group("a/b")
    file["a/b/c"] = file["a"]


def circle_through_the_root(file):
    file["c"] = file["/"]


def soft_circle(file):
    file.create_group("a/b")
    file["a/b/c"] = h5py.SoftLink("/a")


def circle_of_two(file):
    file.create_group("a")["x"] = h5py.SoftLink("/b")
    file.create_group("b")["x"] = h5py.SoftLink("/a")


def circle_of_arrays(file):
    for name, other in (("a", "b"), ("b", "a")):
        layout = h5py.VirtualLayout((10,), "f8")
        layout[:] = h5py.VirtualSource(".", other, (10,))
        file.create_virtual_dataset(name, layout)


def many_ways(file):
    group = file
    for _ in range(25):
        group["one"] = group["two"] = file.create_group(None)
        group = group["one"]


class TestWays:
    @pytest.mark.parametrize(
        "build", [hard_circle, circle_through_the_root, soft_circle, circle_of_two, circle_of_arrays]
    )
    def test_circles(self, tmp_path, build):
        refused(make(tmp_path / "a.h5", build), "Its links lead in a circle")

    def test_few_objects_in_many_ways(self, tmp_path):
        refused(make(tmp_path / "a.h5", many_ways), "in more than 1000000 ways")


class TestTheProcess:
    def run(self, tmp_path, monkeypatch, code):
        script = tmp_path / "inspection.py"
        script.write_text(f"import json, os, signal, sys, time\n{code}\n")
        monkeypatch.setattr(inputs, "_INSPECTION", script)
        monkeypatch.setattr(inputs, "INSPECTION_S", 1.0 if "sleep" in code else 60.0)
        check_file(tmp_path / "a.h5", ())

    @pytest.mark.parametrize(
        ("code", "message"),
        [
            ("os.kill(os.getpid(), signal.SIGSEGV)", r"crash or run for ever \(signal 11\)"),
            ("time.sleep(60)", "could not be looked through within 1 s"),
            (
                "print(json.dumps({'problem': os.environ.get('ACCM_API_KEY', 'no key')}))",
                "a.h5 is refused: no key",
            ),
        ],
    )
    def test_what_goes_wrong_there_is_the_files_fault(self, tmp_path, monkeypatch, code, message):
        monkeypatch.setenv("ACCM_API_KEY", "secret")
        with pytest.raises(ServiceError, match=message) as caught:
            self.run(tmp_path, monkeypatch, code)
        assert caught.value.status == 400

    def test_unless_it_did_not_start(self, tmp_path, monkeypatch):
        with pytest.raises(RuntimeError, match="no such module"):
            self.run(tmp_path, monkeypatch, "sys.exit('no such module')")

    def test_it_may_use_so_much_memory(self, tmp_path, monkeypatch):
        monkeypatch.setattr(inspect_hdf5, "MEMORY_BYTES", 4 << 30)
        code = (
            "sys.path.insert(0, os.path.dirname(os.environ['HERE'])); import service.inspect_hdf5 as i\n"
            "i.inspect_path = lambda *given: bytes(8 << 30); i.main()"
        )
        monkeypatch.setenv("HERE", str(inputs._PROJECT / "service"))
        with pytest.raises(ServiceError, match="HDF5 cannot go through the file: MemoryError"):
            self.run(tmp_path, monkeypatch, code)


def test_damaged_files_are_refused_or_harmless(tmp_path):
    """Some bytes are changed at random; whatever HDF5 makes of them, nothing but a refusal comes out."""
    whole = make_file(tmp_path / "whole.nwb").read_bytes()
    rng = np.random.default_rng(0)
    outcomes = []
    for k in range(8):
        content = np.frombuffer(whole, dtype=np.uint8).copy()
        content[rng.integers(0, min(len(content), 20_000), 40)] = rng.integers(0, 256, 40)
        path = tmp_path / f"{k}.nwb"
        path.write_bytes(content.tobytes())
        try:
            check_file(path, ())
            outcomes.append("")
        except ServiceError as error:
            outcomes.append(str(error))
    assert any(outcomes)
