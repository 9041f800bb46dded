"""The table of hostile inputs in docs/security.md: ``python tests/service/hostile_table.py`` prints it."""

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from hostile_files import LIES, MODELS, REFUSED
from hostile_requests import ALLOWED_NOT, NO_ADDRESSES, REDIRECTS, REQUESTS

NOTHING = "nothing"
Row = tuple[str, str, str]
"""Answer, what is left, input."""


def list_rows() -> Iterator[tuple[str, Iterable[Row]]]:
    """Groups of rows."""
    for group, rows in REQUESTS.items():
        parts = [(str(row.status), "what arrived" if row.leaves else NOTHING, row.what) for row in rows]
        yield group.capitalize() if group.islower() else group, parts
    yield "Models, by PUT /models/NAME", [("400", NOTHING, what) for what in MODELS]
    yield "Files, uploaded and to be sorted", [("400", NOTHING, what) for what in REFUSED]
    lies = [("the job fails", "the job, with the reason", what) for what in LIES]
    yield "Sessions that lie, uploaded and sorted", lies
    redirects = [("the job fails", "the job, with the reason", what) for what in REDIRECTS]
    addresses = [("403", NOTHING, what) for what in ALLOWED_NOT] + [("400", NOTHING, w) for w in NO_ADDRESSES]
    yield "Addresses, and redirects from one that is allowed", [*addresses, *redirects]


def write_table() -> str:
    """All rows as Markdown, those of one answer together."""
    lines = []
    for group, rows in list_rows():
        lines += ["", f"**{group}**", "", "| answer | left behind | input |", "| --- | --- | --- |"]
        together: dict[tuple[str, str], list[str]] = defaultdict(list)
        for answer, left, what in rows:
            together[answer, left].append(what.replace("|", "\\|"))
        for (answer, left), inputs in together.items():
            lines.append(f"| {answer} | {left} | {'; '.join(f'`{w}`' if '/' in w else w for w in inputs)} |")
    return "\n".join(lines[1:]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(write_table())
