"""The gate: who gets through, and what the others are told."""

import pytest
from asgi import connect, request
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from service.auth import ApiKeyMiddleware, protections

KEY = "clé; with=%2B & spaces"
COOKIE = {"Cookie": "a=b; accm_key=cl%C3%A9%3B%20with%3D%252B%20%26%20spaces; c=d"}
BEARER = {"Authorization": f"Bearer {KEY}"}
HOST = {"Host": "localhost:3000"}
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]


async def answer(request: Request):
    return JSONResponse({"path": request.url.path}, headers={"Referrer-Policy": "same-origin"})


async def show(request: Request):
    return HTMLResponse("<p>")


async def talk(websocket: WebSocket):
    await websocket.accept()
    await websocket.send_text("hello")
    await websocket.close()


def make_app(key, *, is_loopback=True):
    routes = [
        Route("/", show),
        WebSocketRoute("/stream", talk),
        WebSocketRoute("/page/stream", talk),
        Route("/{path:path}", answer, methods=METHODS),
    ]
    return Starlette(routes=routes, middleware=protections(key, is_loopback=is_loopback))


def ask(key, method, path, headers=(), **options):
    return request(make_app(key, **options), method, path, headers).status


class TestApiKey:
    @pytest.mark.parametrize("path", ["/", "/livez", "/readyz", "/healthz", "/page/page.js"])
    def test_open_for_reading_alone(self, path):
        assert [ask(KEY, method, path) for method in ("GET", "HEAD", "POST")] == [200, 200, 401]

    @pytest.mark.parametrize(
        "path", ["/jobs", "/metrics", "/docs.json", "/page", "/livez/", "//", "/pages/x"]
    )
    def test_closed_without_a_key(self, path):
        app = make_app(KEY)
        for method in METHODS:
            refused = request(app, method, path)
            assert refused.status == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert "key is missing or wrong" in refused.json()["error"]

    @pytest.mark.parametrize("method", METHODS)
    def test_the_key_opens_and_the_cookie_for_reading(self, method):
        assert ask(KEY, method, "/jobs", BEARER) == 200
        assert ask(KEY, method, "/jobs", COOKIE) == (200 if method in ("GET", "HEAD") else 401)

    @pytest.mark.parametrize(
        "headers",
        [
            {"Authorization": "Bearer"},
            {"Authorization": "Bearer "},
            {"Authorization": f"Basic {KEY}"},
            {"Authorization": KEY},
            {"Authorization": f"Bearer {KEY[:-1]}"},
            {"Authorization": f"Bearer {KEY}x"},
            {"Authorization": f"Bearer {KEY.upper()}"},
            {"Authorization": b"Bearer \xff\xfe\x00"},
            {"Cookie": "accm_key="},
            {"Cookie": "accm_key=%ZZ%"},
            {"Cookie": COOKIE["Cookie"].replace("accm", "Accm")},
        ],
    )
    def test_wrong_keys(self, headers):
        assert ask(KEY, "GET", "/jobs", headers) == 401

    def test_any_of_several_offers_may_be_right(self):
        headers = [("Authorization", "Basic x"), ("Authorization", f"bearer   {KEY}")]
        assert ask(KEY, "POST", "/jobs", headers) == 200

    @pytest.mark.parametrize("path", ["/stream", "/page/stream"])
    @pytest.mark.parametrize("headers", [{}, COOKIE, {"Authorization": "Bearer no"}])
    def test_a_socket_is_refused_before_it_opens(self, path, headers):
        assert connect(make_app(KEY), path, headers) == 401
        assert connect(make_app(KEY), path, headers, extensions=()) == 1008

    def test_a_socket_with_the_key(self):
        assert connect(make_app(KEY), "/stream", BEARER) == 101

    @pytest.mark.parametrize("key", ["", "  "])
    def test_an_empty_key_is_no_key(self, key):
        with pytest.raises(ValueError, match="API key is empty"):
            ApiKeyMiddleware(None, key)


class TestWithoutKey:
    @pytest.mark.parametrize(
        "host", ["localhost:3000", "LOCALHOST", "127.0.0.1:80", "127.8.0.1", "[::1]:3000"]
    )
    def test_own_names(self, host):
        assert ask(None, "GET", "/jobs", {"Host": host}) == 200
        assert ask(None, "POST", "/jobs", {"Host": host, "Origin": f"http://{host}"}) == 200

    @pytest.mark.parametrize(
        "host",
        [
            "evil.example",
            "evil.example:3000",
            "localhost.evil.example",
            "localhost@evil.example:3000x",
            "10.0.0.7",
            "0.0.0.0:3000",
            "[::2]",
            "[::1",
            "",
            "127.0.0.1.evil.example",
            "a, localhost",
        ],
    )
    def test_other_names_are_rebound(self, host):
        refused = request(make_app(None), "GET", "/jobs", {"Host": host})
        assert refused.status == 403
        assert "is named localhost, not" in refused.json()["error"]
        assert connect(make_app(None), "/stream", {"Host": host}) == 403

    @pytest.mark.parametrize("headers", [(), [("Host", "localhost"), ("Host", "evil.example")]])
    def test_none_or_two_hosts(self, headers):
        assert ask(None, "GET", "/jobs", headers) == 403

    def test_other_names_where_the_network_may_ask(self):
        host, ours, other = {"Host": "gpu7.lab:3000"}, "http://gpu7.lab:3000", "http://evil.example"
        assert ask(None, "GET", "/jobs", host, is_loopback=False) == 200
        assert ask(None, "POST", "/jobs", host | {"Origin": ours}, is_loopback=False) == 200
        assert ask(None, "POST", "/jobs", host | {"Origin": other}, is_loopback=False) == 403

    @pytest.mark.parametrize(
        "origin",
        ["http://evil.example", "null", "", "http://localhost:8888", "http://localhost", "localhost:3000"],
    )
    def test_other_pages_change_nothing(self, origin):
        headers = HOST | {"Origin": origin}
        assert {ask(None, method, "/jobs", headers) for method in METHODS[2:]} == {403}
        assert ask(None, "GET", "/jobs", headers) == 200
        assert connect(make_app(None), "/stream", headers) == 403

    def test_programs_and_the_own_page(self):
        for headers in (HOST, HOST | {"Origin": "http://LocalHost:3000"}):
            assert ask(None, "POST", "/jobs", headers) == 200
            assert connect(make_app(None), "/stream", headers) == 101

    def test_a_key_needs_none_of_this(self):
        assert ask(KEY, "POST", "/jobs", BEARER | {"Host": "gpu7.lab", "Origin": "http://other.lab"}) == 200


def test_headers_of_answers():
    app = make_app(KEY)
    ours = request(app, "GET", "/jobs", BEARER).headers
    assert (ours["x-content-type-options"], ours["cache-control"]) == ("nosniff", "no-store")
    assert ours["referrer-policy"] == "same-origin"  # what a route says stays
    page = request(app, "GET", "/").headers
    assert page["referrer-policy"] == "no-referrer"
    assert "cache-control" not in page
    assert request(app, "GET", "/jobs").headers["x-content-type-options"] == "nosniff"  # refusals too


def test_without_a_key_other_machines_are_refused_whatever_they_call_the_server():
    app = make_app(None)
    here = request(app, "GET", "/jobs", [("Host", "localhost:3000")])
    there = request(app, "GET", "/jobs", [("Host", "localhost:3000")], client="192.0.2.7")
    assert (here.status, there.status) == (200, 403)
    assert "192.0.2.7" in there.json()["error"]
    told_to = make_app(None, is_loopback=False)
    assert request(told_to, "GET", "/jobs", [("Host", "lab:3000")], client="192.0.2.7").status == 200
