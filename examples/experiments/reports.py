"""How the experiments write what they found: cells, tables in a page between marks, and pictures."""

from pathlib import Path
from statistics import mean, stdev

from matplotlib.figure import Figure

from modeling_mote.processing.files import whole_file, write_whole


def spread(values: list[float]) -> str:
    """Mean ± standard deviation in percent; the mean alone of one value."""
    shown = f"{100 * mean(values):.1f}"
    return shown if len(values) == 1 else f"{shown} ± {100 * stdev(values):.1f}"


def table(head: list[str], body: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_tables(path: Path, tables: dict[str, str]) -> None:
    """Puts each table between its marks in a Markdown file, or at its end."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    for name, shown in tables.items():
        mark = f"<!-- {name} -->\n"
        if mark not in text:
            text += f"{mark}<!-- end -->\n\n"
        before, _, rest = text.partition(mark)
        text = before + mark + shown + "\n" + rest[rest.index("<!-- end -->") :]
    write_whole(path, text)


def save(figure: Figure, path: Path) -> None:
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=90)
