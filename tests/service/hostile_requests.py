"""Requests that no honest client sends: what each is, and what the server is to answer.

Each is sent over a connection of its own, byte by byte as it stands here.
"""

import io
import json
import pickle
import socket
import struct
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from server_process import KEY

KEYED = f"Authorization: Bearer {KEY}"
COOKIE = f"Cookie: accm_key={KEY.replace(' ', '%20')}"
UPGRADE = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13"
NONCE = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
JSON, BINARY = "Content-Type: application/json", "Content-Type: application/octet-stream"
MIB = 1 << 20
MAX_UPLOAD = 24 * MIB
"""Of the server that is asked."""
WAIT_S = 30.0


@dataclass(frozen=True)
class Request:
    """One row of the table.

    Attributes
    ----------
    what : str
    status : int or str
        Expected; 'closed' when the server ends the connection without a word.
    parts : iterable of bytes
        Sent one after the other.
    is_ended : bool
        The client closes its side afterwards.
    leaves : str
        What is kept on purpose: a file of the uploads.
    """

    what: str
    status: int | str
    parts: Iterable[bytes]
    is_ended: bool = False
    leaves: str = ""


def ask(method, target, *headers, body=b"", key=KEYED, length=True):
    """A request as bytes; the key is sent, and the length of a body, unless told otherwise."""
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", *([key] if key else []), *headers]
    if body and length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def post(path, value, *headers):
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return [ask("POST", path, *(headers or (JSON,)), body=body)]


def chunked(number, size=MIB):
    """A body in chunks, its end included."""
    for _ in range(number):
        yield b"%x\r\n" % size + bytes(size) + b"\r\n"
    yield b"0\r\n\r\n"


def send(port, request):
    """Send it; the status of the answer, or 'closed'."""
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as connection:
        with suppress(ConnectionError):  # it may refuse before it has heard everything
            for part in request.parts:
                connection.sendall(part)
            if request.is_ended:
                connection.shutdown(socket.SHUT_WR)
        return read_status(connection)


def read_status(connection):
    heard = b""
    deadline = time.monotonic() + WAIT_S
    while b"\r\n" not in heard:
        try:
            part = connection.recv(65536)
        except ConnectionError:
            part = b""
        if not part or time.monotonic() > deadline:
            return "closed"
        heard += part
    return int(heard.split(b" ", 2)[1])


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def npy_header(text):
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def giant(shape, descr="<f4"):
    return npy_header(f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}\n")


class Pickled:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was loaded')",))


def deep(number):
    return b'{"a":' * number


def show(text):
    plain = text.replace("\0", "\\0")
    return plain if len(plain) <= 60 else f"{plain[:12]}... of {len(plain)} letters"


SESSION = '{"input":{"path":"session.nwb"}'
REQUESTS = {
    "keys": [
        Request("no key", 401, [ask("GET", "/jobs", key=None)]),
        Request("a wrong key", 401, [ask("GET", "/jobs", key="Authorization: Bearer wrong")]),
        Request("an empty key", 401, [ask("GET", "/jobs", key="Authorization: Bearer ")]),
        Request("another scheme", 401, [ask("GET", "/jobs", key=KEYED.replace("Bearer", "Basic"))]),
        Request("a key of 60 kB", 401, [ask("GET", "/jobs", key="Authorization: Bearer " + "x" * 60_000)]),
        Request("a key that is no text", 401, [ask("GET", "/jobs", key="Authorization: Bearer \xff\xfe")]),
        Request("the key as a cookie, to change something", 401, [ask("DELETE", "/jobs/x", key=COOKIE)]),
        Request("the key in the address", 401, [ask("GET", f"/jobs?key={KEY.replace(' ', '+')}", key=None)]),
        Request("a body without a key", 401, [ask("PUT", "/uploads/a", body=bytes(MIB), key=None)]),
        Request("a websocket without a key", 401, [ask("GET", "/stream", UPGRADE, NONCE, key=None)]),
        Request(
            "a websocket with the cookie alone", 401, [ask("GET", "/stream", UPGRADE, NONCE, key=COOKIE)]
        ),
        Request("out of the open folder", 404, [ask("GET", "/page/../jobs", key=None)]),
        Request("the same, encoded", 404, [ask("GET", "/page/%2e%2e%2fjobs", key=None)]),
        Request("//jobs", 401, [ask("GET", "//jobs", key=None)]),
        Request("/page%2f..%2fjobs", 404, [ask("GET", "/page%2f..%2fjobs", key=None)]),
    ],
    "names and paths": [
        Request(f"{method} {show(target)}", status, [ask(method, target, body=body)])
        for method, target, status, body in [
            ("GET", "/../../etc/passwd", 404, b""),
            ("GET", "/uploads/../jobs.sqlite", 404, b""),
            ("GET", "/uploads/..%2fjobs.sqlite", 404, b""),
            ("GET", "/uploads/%2e%2e%2f%2e%2e%2fetc%2fpasswd", 404, b""),
            ("GET", "/uploads/..%5c..%5cx", 400, b""),
            ("GET", "/uploads/%2e%2e", 400, b""),
            ("GET", "/uploads/..%00.nwb", 400, b""),
            ("GET", "/uploads/%c0%ae%c0%ae", 400, b""),
            ("GET", "/uploads/.hidden", 400, b""),
            ("GET", "/uploads/" + "a" * 60_000, 400, b""),
            ("PUT", "/uploads/..%2fjobs.sqlite", 404, b"x"),
            ("PUT", "/uploads/%2e%2e", 400, b"x"),
            ("PUT", "/uploads/.dispatcher.lock", 400, b"x"),
            ("PUT", "/uploads/a%0d%0aSet-Cookie:x", 404, b"x"),
            ("PUT", "/uploads/" + "a" * 201, 400, b"x"),
            ("DELETE", "/uploads/..%2fjobs.sqlite", 404, b""),
            ("DELETE", "/uploads/link.nwb", 404, b""),
            ("GET", "/uploads/link.nwb", 404, b""),
            ("GET", "/models/..%2f..%2fetc%2fpasswd", 404, b""),
            ("GET", "/models/%2e%2e/file", 404, b""),
            ("GET", "/models/link/file", 409, b""),
            ("PUT", "/models/..%2fx", 404, b"x"),
            ("PUT", "/models/%2e%2e", 400, b"x"),
            ("PUT", "/models/x.safetensors", 400, b"x"),
            ("PUT", "/models/pretrained?overwrite=true", 400, b"x"),
            ("DELETE", "/models/pretrained", 400, b""),
            ("POST", "/embed?model=..%2f..%2fx", 404, npy(np.zeros((1, 60, 1), "f4"))),
            ("POST", "/embed?model=%2fetc%2fx.safetensors", 404, npy(np.zeros((1, 60, 1), "f4"))),
            ("POST", "/embed?model=%00", 404, npy(np.zeros((1, 60, 1), "f4"))),
            ("GET", "/jobs/..%2f..%2fetc", 404, b""),
            ("GET", "/jobs/%2e%2e/result", 404, b""),
            ("GET", "/jobs/%00", 404, b""),
            ("GET", "/jobs/%ff", 404, b""),
            ("GET", "/jobs/'%20OR%20'1'='1", 404, b""),
            ("GET", "/page/..%2f..%2fsettings.py", 404, b""),
            ("GET", "/page/....//settings.py", 404, b""),
        ]
    ]
    + [
        Request(f"sort the path {show(path)}", status, post("/sort", {"input": {"path": path}}))
        for path, status in [
            ("/etc/passwd", 403),
            ("../../etc/passwd", 403),
            ("..", 403),
            ("/proc/self/environ", 403),
            ("link.nwb", 403),
            ("folder/../../x", 403),
            ("dangling.nwb", 403),
            ("circle.nwb", 404),
            ("folder", 400),
            ("pipe.nwb", 400),
            ("a\0b", 400),
            ("a" * 4000, 400),
            ("a" * 5000, 400),
            ("", 400),
        ]
    ]
    + [
        Request(f"sort the upload {show(name)}", 404, post("/sort", {"input": {"upload": name}}))
        for name in ("../jobs.sqlite", "..", "link.nwb", ".hidden", "a\0", "%2e%2e", "nothing.nwb")
    ]
    + [
        Request(
            "a model by its path", 400, post("/sort", f'{SESSION},"model":"/etc/x.safetensors"}}'.encode())
        ),
        Request(
            "a model's name that leaves the folder",
            400,
            post("/finetune", f'{SESSION},"labels":{{"units":{{"a":[1]}}}},"name":"../x"}}'.encode()),
        ),
    ],
    "HTTP": [
        Request(
            "Content-Length and Transfer-Encoding",
            400,
            [
                ask("POST", "/sort", JSON, "Content-Length: 6", "Transfer-Encoding: chunked"),
                b"0\r\n\r\nGET /jobs HTTP/1.1\r\n\r\n",
            ],
        ),
        Request(
            "the same to the uploads",
            400,
            [
                ask("PUT", "/uploads/a", "Transfer-Encoding: chunked", "Content-Length: 6"),
                b"0\r\n\r\n",
            ],
        ),
        Request("two lengths", 400, [ask("POST", "/sort", "Content-Length: 2", "Content-Length: 3"), b"{}"]),
        Request("a negative length", 400, [ask("POST", "/sort", "Content-Length: -1")]),
        Request("a length of 40 digits", 400, [ask("PUT", "/uploads/a", "Content-Length: " + "9" * 40)]),
        Request("a length of 0x10", 400, [ask("PUT", "/uploads/a", "Content-Length: 0x10")]),
        Request("an unknown Transfer-Encoding", 400, [ask("POST", "/sort", "Transfer-Encoding: xchunked")]),
        Request("a space before the colon", 400, [ask("POST", "/sort", "Transfer-Encoding : chunked")]),
        Request(
            "a chunk without a size",
            400,
            [
                ask("POST", "/sort", JSON, "Transfer-Encoding: chunked"),
                b"zz\r\nabc\r\n0\r\n\r\n",
            ],
        ),
        Request("no Host", 400, [b"GET /jobs HTTP/1.1\r\n\r\n"]),
        Request("two Hosts", 400, [ask("GET", "/jobs", "Host: other")]),
        Request("no HTTP at all", 400, [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)]),
        Request("HTTP/0.9", 400, [b"GET /jobs\r\n\r\n"]),
        Request("a zero byte in a header", 400, [ask("GET", "/jobs", "X: a\0b")]),
        Request("a header of 1 MB", 400, [ask("GET", "/jobs", "X: " + "a" * 1_000_000)]),
        Request("20,000 headers", 400, [ask("GET", "/jobs", *(f"X{k}: a" for k in range(20_000)))]),
        Request("an address of 1 MB", 400, [ask("GET", "/jobs/" + "a" * 1_000_000)]),
        Request("another server's address", 404, [ask("GET", "http://169.254.169.254/jobs")]),
        Request("CONNECT", 404, [ask("CONNECT", "127.0.0.1:22")]),
        Request("TRACE", 405, [ask("TRACE", "/sort")]),
        Request("an unknown method", 405, [ask("BREW", "/jobs")]),
        Request("a websocket where there is none", 403, [ask("GET", "/jobs", UPGRADE, NONCE)]),
        Request("a websocket without its nonce", 400, [ask("GET", "/stream", UPGRADE)]),
        Request("a limit of 5000 digits", 400, [ask("GET", "/jobs?limit=" + "9" * 5000)]),
        Request(
            "a body that ends early",
            "closed",
            [
                ask("POST", "/sort", JSON, "Content-Length: 500"),
                b"{",
            ],
            is_ended=True,
        ),
        Request(
            "a model that ends early",
            "closed",
            [
                ask("PUT", "/models/half", "Content-Length: 5000"),
                b"abc",
            ],
            is_ended=True,
        ),
        Request(
            "an upload that ends early",
            "closed",
            [
                ask("PUT", "/uploads/half.nwb", "Content-Length: 5000"),
                bytes(1000),
            ],
            is_ended=True,
            leaves="half.nwb",
        ),
    ],
    "sizes": [
        Request("JSON of 2 MB", 413, post("/sort", b'{"a":"' + b"a" * 2 * MIB + b'"}')),
        Request(
            "JSON of 2 MB in chunks",
            413,
            [
                ask("POST", "/sort", JSON, "Transfer-Encoding: chunked"),
                *chunked(2),
            ],
        ),
        Request("labels of 17 MB", 413, post("/finetune", b" " * 17 * MIB)),
        Request("snippets that say 65 MB", 413, [ask("POST", "/embed", f"Content-Length: {65 * MIB}")]),
        Request(
            "snippets of 65 MB in chunks",
            413,
            [
                ask("POST", "/embed", BINARY, "Transfer-Encoding: chunked"),
                *chunked(65),
            ],
        ),
        Request("a model that says 257 MB", 413, [ask("PUT", "/models/a", f"Content-Length: {257 * MIB}")]),
        Request(
            "an upload that says too much",
            413,
            [
                ask("PUT", "/uploads/a", f"Content-Length: {MAX_UPLOAD + 1}"),
            ],
        ),
        Request(
            "an upload in chunks that goes on",
            413,
            [
                ask("PUT", "/uploads/a", "Transfer-Encoding: chunked"),
                *chunked(26),
            ],
        ),
        Request(
            "a part of too large a file",
            413,
            [
                ask("PUT", "/uploads/a", "Content-Range: bytes 0-0/1000000000000", body=b"x"),
            ],
        ),
        Request(
            "a part beyond its range",
            400,
            [
                ask("PUT", "/uploads/a", "Content-Range: bytes 0-1/5", body=b"xyz"),
            ],
            leaves="a",
        ),
        Request(
            "a part that is not the next",
            409,
            [
                ask("PUT", "/uploads/a", "Content-Range: bytes 5-6/9", body=b"xy"),
            ],
        ),
        Request(
            "a range of 20 digits",
            400,
            [
                ask("PUT", "/uploads/a", f"Content-Range: bytes 0-{'9' * 20}/{'9' * 21}", body=b"xy"),
            ],
        ),
        Request("a wrong checksum", 400, [ask("PUT", f"/uploads/a?sha256={'0' * 64}", body=b"x")]),
    ],
    "JSON": [
        Request(what, 400, post("/sort", body))
        for what, body in [
            ("nothing", b""),
            ("half an object", b'{"input":'),
            ("a list", b"[]"),
            ("null", b"null"),
            ("100,000 objects deep", deep(100_000)),
            ("500,000 lists deep", b"[" * 500_000),
            ("no UTF-8", b'{"input":{"path":"\xff\xfe"}}'),
            ("half a surrogate", b'{"input":{"path":"\\ud800"}}'),
            ("a seed that is NaN", f'{SESSION},"seed":NaN}}'.encode()),
            ("a seed of 10,000 digits", f'{SESSION},"seed":{"9" * 10_000}}}'.encode()),
            ("a parameter of 1e999", f'{SESSION},"params":{{"detect":{{"threshold":1e999}}}}}}'.encode()),
            ("an unknown parameter", f'{SESSION},"params":{{"detect":{{"__class__":1}}}}}}'.encode()),
            ("an unknown field", f'{SESSION},"command":"x"}}'.encode()),
            ("path and upload", b'{"input":{"path":"a","upload":"b"}}'),
        ]
    ]
    + [
        Request(
            f"labels {what}", 400, post("/finetune", f'{SESSION},"name":"n","labels":{labels}}}'.encode())
        )
        for what, labels in [
            ("at NaN", '{"units":{"a":[NaN]}}'),
            ("at 1e999 s", '{"units":{"a":[1e999]}}'),
            ("of a nameless unit", '{"units":{"":[1.0]}}'),
            ("with a name of 10,000 letters", json.dumps({"units": {"a" * 10_000: [1.0]}})),
            ("100,000 lists deep", '{"units":{"a":' + "[" * 100_000 + "]" * 100_000 + "}}"),
        ]
    ]
    + [
        Request(f"of the type {kind}", 415, post("/sort", b"{}", f"Content-Type: {kind}"))
        for kind in (
            "text/plain",
            "multipart/form-data; boundary=x",
            "application/vnd.bentoml+pickle",
            "\xff",
        )
    ]
    + [
        Request(
            "a form with an address to fetch",
            415,
            post(
                "/embed", b"snippets=http://127.0.0.1:1/x", "Content-Type: application/x-www-form-urlencoded"
            ),
        ),
    ],
    "snippets": [
        Request(what, status, post(f"/{route}", body, BINARY))
        for what, status, route, body in [
            ("no .npy", 400, "embed", b"hello"),
            ("nothing", 400, "embed", b""),
            ("pickled objects", 400, "embed", npy(np.array([Pickled()], dtype=object))),
            ("a bare pickle", 400, "embed", pickle.dumps(Pickled())),
            ("NaN", 400, "embed", npy(np.full((2, 60, 1), np.nan, "f4"))),
            ("infinity", 400, "embed", npy(np.full((2, 60, 1), np.inf, "f4"))),
            ("values of 1e30", 400, "embed", npy(np.full((2, 60, 1), 1e30, "f4"))),
            ("a shape of 10^18", 400, "embed", giant("(1000000000, 1000000000, 1)") + bytes(99)),
            ("a negative shape", 400, "embed", giant("(-1, 60, 1)")),
            ("a shape of 0 x 60 x 0", 400, "embed", giant("(0, 60, 0)")),
            ("a shape that overflows", 400, "embed", giant("(4294967296, 4294967296, 4)")),
            ("another number of axes", 400, "embed", npy(np.zeros((4, 4), "f4"))),
            ("another window", 400, "embed", npy(np.zeros((1, 4, 1), "f4"))),
            ("too many channels", 400, "embed", npy(np.zeros((1, 60, 64), "f4"))),
            ("complex numbers", 400, "embed", npy(np.zeros((1, 60, 1), "c8"))),
            ("records", 400, "embed", npy(np.zeros((1, 60, 1), [("a", "f4")]))),
            ("a header that is code", 400, "embed", npy_header("__import__('os').abort()\n")),
            ("a header of 60 kB", 400, "embed", npy_header(" " * 60_000)),
            ("a header of 1000 brackets", 400, "embed", npy_header("(" * 1000)),
            ("half a file", 400, "embed", npy(np.zeros((10, 60, 1), "f4"))[:-50]),
            ("more than a file", 400, "embed", npy(np.zeros((10, 60, 1), "f4")) + b"more"),
            ("to a model without units", 400, "classify?model=pretrained", npy(np.zeros((1, 60, 1), "f4"))),
            ("to no model", 400, "classify", npy(np.zeros((1, 60, 1), "f4"))),
        ]
    ],
}
ALLOWED_NOT = (
    "http://127.0.0.1/x",
    "http://localhost:PORT/x",
    "http://127.1:PORT/x",
    "http://2130706433:PORT/x",
    "http://0x7f.0.0.1:PORT/x",
    "http://[::1]:PORT/x",
    "http://[::ffff:127.0.0.1]:PORT/x",
    "http://127.0.0.1.:PORT/x",
    "http://169.254.169.254/latest/meta-data",
)
"""Addresses of hosts that are not allowed, where 127.0.0.1:PORT is."""
NO_ADDRESSES = ("file:///etc/passwd", "http://a:b@127.0.0.1:PORT/x", "gopher://127.0.0.1/", "x")
REDIRECTS = (
    "http://127.0.0.1:OTHER/secret.nwb",
    "http://localhost:PORT/session.nwb",
    "http://2130706433:OTHER/secret.nwb",
    "http://127.1:OTHER/secret.nwb",
    "http://[::ffff:127.0.0.1]:OTHER/secret.nwb",
    "http://127.0.0.1:PORT@127.0.0.1:OTHER/secret.nwb",
    "file:///etc/passwd",
    "http://127.0.0.1:PORT/7",
)
"""What an allowed address leads to; the last one is itself."""
