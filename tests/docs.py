"""Tables of the docs that are made from the code: `python -m tests.docs` writes them anew, tests hold them."""

from pathlib import Path

from service import catalogue, metrics

DOCS = Path(__file__).resolve().parents[1] / "docs"
MADE = {("reference.md", "log lines"): catalogue.table, ("metrics.md", "metrics"): metrics.table}


def with_table(text: str, name: str, table: str) -> str:
    """The text with the table between `<!-- name -->` and `<!-- end -->`."""
    begin = f"<!-- {name} -->\n"
    head, rest = text.split(begin)
    return head + begin + table + "<!-- end -->" + rest.split("<!-- end -->", 1)[1]


def main() -> None:
    for (file, name), make in MADE.items():
        path = DOCS / file
        path.write_text(with_table(path.read_text(), name, make()))


if __name__ == "__main__":
    main()
