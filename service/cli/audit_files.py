"""The files of an audit: the export in both forms, and the anchors that go beside it; written and read a line at a
time."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Final
from uuid import UUID

import click
import orjson

from service.domain.anchor import Anchor, End, Seal, Tombstone, leaf
from service.domain.event import rfc3339
from service.domain.record import FIELDS

COLUMNS: Final = ("run_id", "seq", "type", "at", "actor", "data", "prev_hash", "hash", "of")
RECORD: Final = {f"record_{name}": name for name in FIELDS}
_JSON: Final = frozenset({"changes", "reasons", "edits"})
_NUMBERS: Final = frozenset({"position", "quorum", "call"})
_TEXTS: Final = ("run_id", "type", "at", "actor", "prev_hash", "hash")
_FORMULAS: Final = ("=", "+", "-", "@", "\t", "\r", "'")
csv.field_size_limit(2**31 - 1)

Line = Mapping[str, Any]


def jsonl(sink: IO[str]) -> Callable[[Line], object]:
    return lambda line: sink.write(orjson.dumps(line).decode() + "\n")


def as_csv(sink: IO[str]) -> Callable[[Line], object]:
    writer = csv.DictWriter(sink, (*COLUMNS, *RECORD), lineterminator="\n")
    writer.writeheader()

    def write(line: Line) -> None:
        record = line.get("record") or {}
        cells = {column: _cell(name, record.get(name)) for column, name in RECORD.items()}
        writer.writerow(
            {**{name: line[name] for name in COLUMNS}, "data": orjson.dumps(line["data"]).decode(), **cells}
        )

    return write


def lines_of(source: IO[str]) -> Iterator[Line]:
    """The lines of an export in either form. Raises `ClickException` with the line."""
    form = _read_csv if source.read(1) not in ("{", "") else _read_jsonl
    source.seek(0)
    return form(source)


def _read_jsonl(source: IO[str]) -> Iterator[Line]:
    for number, text in enumerate(source, 1):
        try:
            line = orjson.loads(text)
            yield _checked({**{name: line[name] for name in COLUMNS}, "record": line.get("record")})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _no_export(number) from None


def _read_csv(source: IO[str]) -> Iterator[Line]:
    rows = csv.DictReader(source)
    if not set(COLUMNS).issubset(rows.fieldnames or ()):
        raise _no_export(1)
    rich = set(RECORD).issubset(rows.fieldnames or ())
    for number, row in enumerate(rows, 2):
        try:
            line: dict[str, Any] = {name: row[name] for name in COLUMNS}
            line |= {"seq": int(row["seq"]), "of": int(row["of"]), "data": orjson.loads(row["data"])}
            record = {name: _value(name, row[column]) for column, name in RECORD.items()} if rich else {}
            told = any(value is not None for value in record.values())
            yield _checked({**line, "record": record if told else None})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _no_export(number) from None


def _checked(line: dict[str, Any]) -> Line:
    if not all(isinstance(line[name], str) for name in _TEXTS):
        raise TypeError
    if not (type(line["seq"]) is int and type(line["of"]) is int):
        raise TypeError
    return line


def _no_export(number: int) -> click.ClickException:
    return click.ClickException(f"line {number} is not an event of an export")


def _cell(name: str, value: Any) -> str:
    """A value as a cell that no spreadsheet takes for a formula."""
    if value is None:
        return ""
    text = orjson.dumps(value).decode() if name in _JSON or not isinstance(value, str) else value
    return f"'{text}" if text.startswith(_FORMULAS) else text


def _value(name: str, cell: str) -> Any:
    if cell == "":
        return None
    text = cell.removeprefix("'")
    if name in _JSON:
        return orjson.loads(text)
    return int(text) if name in _NUMBERS else text


# Anchors


def anchor_line(anchor: Anchor, ends: Sequence[End], shown: Callable[[End], bool]) -> Line:
    """An anchor with what it is over: ends that are shown whole, of others only what goes into the root."""
    known = {name: getattr(anchor, name) for name in ("n", "heads", "root", "prev_hash", "hash")}
    over = [[str(e.run_id), e.tenant, e.seq, e.hash] if shown(e) else leaf(e) for e in ends]
    return {"anchor": {**known, "at": rfc3339(anchor.at), **_seal(anchor.seal)}, "over": over}


def stone_line(stone: Tombstone) -> Line:
    end = stone.end
    about = {"run_id": str(end.run_id), "tenant": end.tenant, "seq": end.seq, "hash": end.hash}
    return {"purged": {**about, "at": rfc3339(stone.at), **_seal(stone.seal)}}


def read_anchors(file: Path) -> Iterator[tuple[Anchor, list[str], list[End]] | Tombstone | bool]:
    """Each anchor with its leaves and the ends that are shown, each tombstone, and whether the export is of all runs.

    Raises `ClickException` with the line.
    """
    with file.open("rb") as source:
        for number, text in enumerate(source, 1):
            try:
                yield _anchored(orjson.loads(text))
            except (ValueError, KeyError, TypeError):
                raise click.ClickException(f"line {number} is not one of anchors") from None


def _anchored(line: Line) -> tuple[Anchor, list[str], list[End]] | Tombstone | bool:
    if "export" in line:
        return bool(line["export"]["whole"])
    if "purged" in line:
        about = line["purged"]
        return Tombstone(
            _end([about[name] for name in ("run_id", "tenant", "seq", "hash")]), _at(about), _sealed(about)
        )
    about = line["anchor"]
    ends = [_end(one) for one in line["over"] if not isinstance(one, str)]
    leaves = [one for one in line["over"] if isinstance(one, str)] + [leaf(end) for end in ends]
    root, prev_hash, own = (str(about[name]) for name in ("root", "prev_hash", "hash"))
    anchor = Anchor(int(about["n"]), _at(about), int(about["heads"]), root, prev_hash, own, _sealed(about))
    return anchor, leaves, ends


def _end(told: Sequence[Any]) -> End:
    run_id, tenant, seq, last = told
    return End(UUID(run_id), str(tenant), int(seq), str(last))


def _at(told: Line) -> datetime:
    return datetime.fromisoformat(told["at"])


def _seal(seal: Seal) -> Line:
    return {"key_id": seal.key_id, "public_key": seal.public_key, "signature": seal.signature}


def _sealed(told: Line) -> Seal:
    return Seal(str(told["key_id"]), str(told["public_key"]), str(told["signature"]))
