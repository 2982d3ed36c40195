"""An evaluation as one HTML file that opens from disk: tables, charts, and samples to filter. Nothing is loaded from
elsewhere, and all text of data and models is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from vidtune.evaluation.plots import DPI
from vidtune.evaluation.records import Prediction
from vidtune.evaluation.tables import Table

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1200px; padding: 1.5rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; }
th, td { border-bottom: 1px solid #8886; padding: .25rem .6rem; text-align: right; white-space: nowrap; }
th.text, td.text { text-align: left; } caption { font-weight: 600; text-align: left; padding: .4rem 0; }
img { max-width: 100%; height: auto; } ul.notes { font-size: .85rem; padding-left: 1.2rem; }
#filter { position: sticky; top: 0; background: Canvas; padding: .6rem 0; display: flex; gap: .6rem; flex-wrap: wrap;
  border-bottom: 1px solid #8886; } #filter input { flex: 1; min-width: 12rem; }
article { border: 1px solid #8886; border-left: .4rem solid #D55E00; border-radius: .3rem; margin: .8rem 0;
  padding: .6rem .9rem; } article[data-right=all] { border-left-color: #009E73; }
article[data-right=some] { border-left-color: #E69F00; } article h3 { font-size: .95rem; margin: 0 0 .4rem; }
article h3 small { font-weight: 400; opacity: .75; } pre { white-space: pre-wrap; font-size: .8rem; margin: .3rem 0; }
.right::before { content: "✓ "; color: #009E73; } .wrong::before { content: "✗ "; color: #D55E00; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem; margin: .4rem 0; }
dt { opacity: .75; } dd { margin: 0; }
"""

_SCRIPT = """
const cards = [...document.querySelectorAll("article")];
const [type, right, text] = ["type", "right", "text"].map(id => document.getElementById(id));
function show() {
  const words = text.value.toLowerCase();
  let shown = 0;
  for (const card of cards) {
    const fits = (!type.value || card.dataset.type === type.value) &&
      (!right.value || card.dataset.right === right.value) && card.textContent.toLowerCase().includes(words);
    card.hidden = !fits;
    shown += fits;
  }
  document.getElementById("shown").textContent = `${shown} of ${cards.length} samples`;
}
for (const control of [type, right, text]) control.addEventListener("input", show);
show();
"""


@dataclass(frozen=True)
class ReportSample:
    """One question with the answers of all rows.

    Args:
        answers: row name -> prediction; all of the same question.
        prompt: as the model read it, runs of visual tokens collapsed.
        strip: JPEG of the frames side by side; None where they could not be read.
    """

    answers: Mapping[str, Prediction]
    prompt: str = ""
    strip: bytes | None = None

    @property
    def right(self) -> str:
        """``all``, ``some`` or ``none`` of the rows."""
        correct = [bool(prediction.correct) for prediction in self.answers.values()]
        return "all" if all(correct) else "some" if any(correct) else "none"


def write_report(
    path: Path,
    title: str,
    tables: Sequence[Table],
    charts: Sequence[Figure],
    samples: Sequence[ReportSample],
    note: str,
) -> Path:
    """Write the page.

    Args:
        note: which of all samples are shown.
    """
    body = [f"<h1>{escape(title)}</h1>", *map(_table, tables)]
    body += [f"<p>{_image(_png(chart), 'image/png', 'chart')}</p>" for chart in charts]
    if samples:
        body += ["<h2>Samples</h2>", f"<p>{escape(note)}</p>", _filter(samples), *map(_card, samples)]
        body.append(f"<script>{_SCRIPT}</script>")
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _table(table: Table) -> str:
    kinds = [' class="text"' if column.kind == "text" else "" for column in table.columns]
    head = "".join(f"<th{kind}>{escape(c.name)}</th>" for c, kind in zip(table.columns, kinds))
    rows = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(cells, kinds)) + "</tr>\n"
        for cells in table.shown()
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        f'<div class="scroll"><table><caption>{escape(table.title)}</caption><thead><tr>{head}</tr></thead>'
        f'<tbody>{rows}</tbody></table></div><ul class="notes">{notes}</ul>'
    )


def _filter(samples: Sequence[ReportSample]) -> str:
    types = sorted({prediction.question_type for sample in samples for prediction in sample.answers.values()})
    options = "".join(f'<option value="{escape(kind)}">{escape(kind)}</option>' for kind in types if kind)
    right = "".join(
        f'<option value="{value}">{label}</option>'
        for value, label in (("all", "all rows right"), ("some", "some rows right"), ("none", "no row right"))
    )
    return (
        f'<div id="filter"><select id="type"><option value="">every type</option>{options}</select>'
        f'<select id="right"><option value="">right and wrong</option>{right}</select>'
        '<input id="text" type="search" placeholder="words in question, answer or id"><span id="shown"></span></div>'
    )


def _card(sample: ReportSample) -> str:
    first = next(iter(sample.answers.values()))
    strip = _image(base64.b64encode(sample.strip).decode(), "image/jpeg", "frames") if sample.strip else ""
    answers = "".join(
        f'<dt>{escape(row)}</dt><dd class="{"right" if p.correct else "wrong"}">{escape(p.prediction or p.status)}</dd>'
        for row, p in sample.answers.items()
    )
    bad = "".join(f"<dt>not read</dt><dd>{escape(str(p.extra['bad_media']))}</dd>" for p in [first] if _is_bad(p))
    return (
        f'<article data-type="{escape(first.question_type)}" data-right="{sample.right}">'
        f"<h3>{escape(first.question)} <small>{escape(first.sample_id)} {escape(first.question_type)}</small></h3>"
        f"{strip}<dl><dt>answer</dt><dd>{escape(first.answer)}</dd>{answers}{bad}</dl>"
        f"<details><summary>prompt</summary><pre>{escape(sample.prompt)}</pre></details></article>"
    )


def _is_bad(prediction: Prediction) -> bool:
    return prediction.status == "bad_media" and "bad_media" in prediction.extra


def _image(data: str, kind: str, description: str) -> str:
    return f'<img alt="{description}" src="data:{kind};base64,{data}">'


def _png(figure: Figure) -> str:
    out = io.BytesIO()
    figure.savefig(out, dpi=DPI * 2 // 3, format="png")
    return base64.b64encode(out.getvalue()).decode()
