"""The routes of the page: whole, closed to everything foreign, and nothing beside its files."""

import asyncio
import re

import httpx
import pytest
from starlette.applications import Starlette

from service import page


def get(path: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(Starlette(routes=page.routes))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.get(path)

    return asyncio.run(ask())


def test_page_and_all_that_it_names_are_served():
    shell = get("/")
    assert shell.headers["content-type"] == "text/html; charset=utf-8"
    named = set(re.findall(r'(?:src|href)="page/([^"]+)"', shell.text))
    assert named >= {"app.js", "style.css", "icon.svg"}
    script_names = {name for name in page.FILES if name.endswith(".js")}
    imported = {
        name
        for script in script_names
        for name in re.findall(r'from "\./(.+?)"', get(f"/page/{script}").text)
    }
    assert imported | {"app.js"} == script_names
    assert all(get(f"/page/{name}").status_code == 200 for name in named | imported)


def test_nothing_foreign_and_nothing_inline():
    for path in ("/", *(f"/page/{name}" for name in page.FILES)):
        answer = get(path)
        policy = answer.headers["content-security-policy"].split("; ")
        assert {"default-src 'none'", "script-src 'self'", "style-src 'self'", "base-uri 'none'"} <= set(
            policy
        )
        assert {"connect-src 'self'", "form-action 'none'", "frame-ancestors 'none'"} <= set(policy)
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)[\w.]", answer.text)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b", answer.text)
    assert not re.search(r'<script(?![^>]* src=)|\son\w+="|\sstyle="|<style', get("/").text)


@pytest.mark.parametrize("name", ["absent.js", "../page.py", "..%2Fpage.py", "%2e%2e%2fpage.py", ""])
def test_nothing_beside_the_files_is_served(name):
    answer = get(f"/page/{name}")
    assert answer.status_code == 404
    assert "Starlette" not in answer.text
