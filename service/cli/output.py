"""What commands print: one array of JSON objects, or a table that is plain where no terminal is."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

Row = Mapping[str, Any]
_JSON: Final = orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON array of objects.")


def dumps(value: Any) -> str:
    """Indented JSON; times in UTC with `Z`."""
    return orjson.dumps(value, option=_JSON, default=str).decode()  # str: asyncpg has a UUID of its own


def show(rows: Sequence[Row], columns: Sequence[str], *, as_json: bool) -> None:
    """Print the rows whole as JSON, or their `columns` as a table."""
    if as_json:
        click.echo(dumps(rows))
        return
    cells = [[cell(row.get(column)) for column in columns] for row in rows]
    console = Console(highlight=False)
    if console.is_terminal:
        table = Table(*columns, box=None, header_style="bold", pad_edge=False)
        for line in cells:
            table.add_row(*map(Text, line))
        console.print(table)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for line in [list(columns), *cells]:
        click.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A bar for long work, gone at its end: on standard error, and only where that is a terminal. What is yielded is
    told how much more was done; without a `total` the bar only moves."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(cell(label), total=total)
        yield lambda done: bar.advance(task, done)


def cell(value: Any) -> str:
    """One line without control characters: what is shown was written by strangers."""
    match value:
        case None:
            text = ""
        case datetime():
            text = value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        case list() | tuple():
            text = ", ".join(map(str, value))
        case dict():
            text = orjson.dumps(value).decode()
        case _:
            text = str(value)
    return "".join(c if c.isprintable() else " " for c in text)
