"""What commands print: one array of JSON objects, or a table that is plain where no terminal is."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click
import orjson
from rich.console import Console
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
