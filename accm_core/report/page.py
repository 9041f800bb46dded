"""Put the page together: template, style, script and data in one file."""

import html
import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from accm_core import __version__
from accm_core.errors import AccmError
from accm_core.report.payload import make_payload
from accm_core.types import Sorting

MARK = '<meta name="generator" content="accm'
SCRIPTS = ("charts.js", "headline.js", "activity.js", "table.js", "unit.js", "page.js")  # in this order
MARK_WITHIN = 1024  # bytes from the start in which a report of ours carries its mark


def write_report(sorting: Sorting, file_path: Path, *, title: str) -> None:
    """Write the report of a sorting: whole or not at all.

    Parameters
    ----------
    sorting : Sorting
        The result.
    file_path : Path
        HTML file; a report that is there already is replaced.
    title : str
        Name of the session, shown at the top.

    Raises
    ------
    AccmError
        If ``file_path`` is there and is no report of ours, or its folder does not exist.
    """
    check_report_path(file_path)
    text = render_report(sorting, title=title)
    temporary = file_path.with_name(f".{file_path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file_path)
    finally:
        temporary.unlink(missing_ok=True)


def check_report_path(file_path: Path) -> None:
    """Refuse a path where a report may not be written.

    Raises
    ------
    AccmError
        If a file is there that is no report of ours, or the folder does not exist or cannot be written to.
    """
    folder = file_path.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise AccmError(
            f"The folder {folder} of the report is not there or cannot be written to. Choose another."
        )
    if not file_path.exists():
        return
    ours = False
    if file_path.is_file():
        with file_path.open("rb") as file:
            ours = MARK.encode() in file.read(MARK_WITHIN)
    if not ours:
        raise AccmError(
            f"{file_path} is there and is not a report of accm. Move it away, or choose another name."
        )


def render_report(sorting: Sorting, *, title: str) -> str:
    r"""Render the report of a sorting as the text of one self-contained HTML page.

    Notes
    -----
    Nothing of the session is put into the page as markup: the title is escaped, and the data are JSON in
    which ``<`` is written ``\u003c``, shown by the script as text alone. A content security policy forbids
    the page every request.
    """
    payload = make_payload(sorting, title)
    # what JSON cannot hold (NaN in a parameter, a path) is shown as it prints
    provenance = json.dumps(payload["provenance"], default=_plain)
    payload["provenance"] = json.loads(provenance, parse_constant=str)
    data = json.dumps(payload, allow_nan=False, separators=(",", ":"))
    parts = {
        "mark": f'{MARK} {__version__}">',
        "title": html.escape(title),
        "style": _read("page.css"),
        "script": "\n".join(_read(name) for name in SCRIPTS),
        "data": data.replace("<", "\\u003c"),
    }
    before, *fields = _read("page.html").split("{{")
    pieces = [before]
    for field in fields:
        name, _, after = field.partition("}}")
        pieces += [parts[name], after]
    return "".join(pieces)


def _read(name: str) -> str:
    return files("accm_core.report").joinpath(name).read_text(encoding="utf-8")


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)
