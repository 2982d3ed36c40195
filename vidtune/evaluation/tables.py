"""A table of results, drawn for a terminal, as markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

Kind = Literal["text", "count", "percent", "interval", "number", "difference", "p_value"]
"""What a column holds: shares and their intervals are fractions in [0, 1] and are shown in percent."""

MISSING = "–"


@dataclass(frozen=True)
class Column:
    name: str
    kind: Kind = "text"


@dataclass
class Table:
    """Rows of cells; a cell is None where a value is undefined.

    Args:
        columns: in order.
        rows: one cell per column; an ``interval`` cell is (low, high).
        title: shown above.
        notes: sentences shown below: what was not computed and why, what a column means.
        sections: indices of rows before which a line is drawn.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    title: str = ""
    notes: list[str] = field(default_factory=list)
    sections: Sequence[int] = ()

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.rows} - {len(self.columns)}
        assert not widths, f"{len(self.columns)} columns but rows of {sorted(widths)} cells"

    def column(self, name: str) -> list[Any]:
        """The cells of one column."""
        return [row[self._index(name)] for row in self.rows]

    def cell(self, row: str, column: str) -> Any:
        """The cell in the row whose first cell is ``row``."""
        return next(cells for cells in self.rows if cells[0] == row)[self._index(column)]

    def rich(self) -> Group:
        """For ``rich.print``; notes stand below, as wide as the terminal."""
        table = RichTable(title=self.title or None)
        for place, column in enumerate(self.columns):
            # What a row is about stays legible in a narrow terminal.
            justify: Literal["left", "right"] = "left" if column.kind == "text" else "right"
            table.add_column(Text(column.name), justify=justify, no_wrap=place == 0)
        for index, row in enumerate(self.rows):
            if index in self.sections and index:
                table.add_section()
            # Text keeps brackets in names and answers from being read as markup.
            table.add_row(*(Text(cell) for cell in self._shown(row)))
        return Group(table, *(Text(note, style="italic") for note in self.notes))

    def shown(self) -> list[list[str]]:
        """All cells as they are shown."""
        return [self._shown(row) for row in self.rows]

    def narrow(self, width: int) -> list[Table]:
        """The table as one or several that fit a terminal of ``width`` characters: each repeats the columns of text
        that stand first and name a row, the notes follow the last. Columns without any value are left out."""
        kinds = [column.kind for column in self.columns]
        labels = next((i for i, kind in enumerate(kinds) if kind != "text"), 0) or 1
        shown = [[column.name for column in self.columns], *self.shown()]
        needed = [max(len(row[i]) for row in shown) + 3 for i in range(len(self.columns))]
        groups: list[list[int]] = [[]]
        for index in range(labels, len(self.columns)):
            if all(row[index] is None for row in self.rows):
                continue
            used = 1 + sum(needed[:labels]) + sum(needed[i] for i in groups[-1])
            if groups[-1] and used + needed[index] > width:
                groups.append([])
            groups[-1].append(index)
        tables = []
        for number, group in enumerate(groups):
            chosen = [*range(labels), *group]
            tables.append(
                Table(
                    [self.columns[i] for i in chosen],
                    [[row[i] for i in chosen] for row in self.rows],
                    title=self.title if number == 0 else "",
                    notes=self.notes if number == len(groups) - 1 else [],
                    sections=self.sections,
                )
            )
        return tables

    def markdown(self) -> str:
        """GitHub-style table with title and notes."""

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

        rule = "|" + "|".join(":---" if column.kind == "text" else "---:" for column in self.columns) + "|"
        body = [line([column.name for column in self.columns]), rule, *(line(self._shown(row)) for row in self.rows)]
        blocks = [[f"**{self.title}**"] if self.title else [], body, [f"- {note}" for note in self.notes]]
        return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"

    def csv(self) -> str:
        """Raw values (fractions, not percent); an interval becomes two columns, an undefined cell is empty."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        names = [[f"{c.name} low", f"{c.name} high"] if c.kind == "interval" else [c.name] for c in self.columns]
        writer.writerow(name for pair in names for name in pair)
        for row in self.rows:
            cells: list[Any] = []
            for column, cell in zip(self.columns, row, strict=True):
                cells += list(cell or ("", "")) if column.kind == "interval" else [cell]
            writer.writerow(cells)
        return out.getvalue()

    def save(self, folder: Path | str, stem: str) -> list[Path]:
        """Write ``<stem>.md`` and ``<stem>.csv``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{stem}.md", folder / f"{stem}.csv"]
        for path, text in zip(paths, (self.markdown(), self.csv()), strict=True):
            path.write_text(text, encoding="utf-8")
        return paths

    def _index(self, name: str) -> int:
        return [column.name for column in self.columns].index(name)

    def _shown(self, row: Sequence[Any]) -> list[str]:
        return [_show(cell, column.kind) for cell, column in zip(row, self.columns, strict=True)]


def _show(cell: Any, kind: Kind) -> str:
    if cell is None:
        return MISSING
    match kind:
        case "percent":
            return f"{100 * cell:.1f}"
        case "difference":
            return f"{100 * cell:+.1f}"
        case "interval":
            return f"{100 * cell[0]:.1f} to {100 * cell[1]:.1f}"
        case "number":
            return f"{cell:.4g}"
        case "p_value":
            return f"{cell:.3f}" if cell >= 0.001 else "< 0.001"
        case "count":
            return f"{cell:,}"
        case _:
            return str(cell)
