"""A web server for tests: it sends parts of files that lie in its memory, or what a test makes it answer."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Serves ``files`` by name; ``answer`` may treat a request otherwise and then returns True."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.etag = "one"
        self.ranges: list[tuple[int, int]] = []
        self.answer: Callable[[_Handler], bool] = lambda handler: False

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def handle_error(self, request, client_address):
        """A client that goes away is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        content = self.server.files.get(self.path.partition("?")[0].strip("/"))
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if self.server.answer(self):
            return
        if content is None:
            self.reply(404)
        elif wanted is None or not content:
            self.reply(416 if wanted else 200)
        else:
            start, stop = int(wanted[1]), min(int(wanted[2]) + 1, len(content))
            self.server.ranges.append((start, stop))
            where = {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}", "ETag": self.server.etag}
            self.reply(206, content[start:stop], where)

    def reply(self, status, body=b"", headers=None, *, length=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Say nothing."""


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
