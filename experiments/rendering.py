"""An experiment's rows as text for a screen, as Markdown, and as sections of a page."""

import textwrap
from dataclasses import dataclass

from markdown_it import MarkdownIt

from experiments.records import MADE_WITH
from experiments.results import Claim, Table, claims_table
from experiments.statistics import Rows
from experiments.study import Experiment, first_line, part_name, part_rows, text_of

# the largest difference of gradients that rounding explains, relative to the largest entry
ROUNDING = {"float64": 1e-9, "float32": 1e-3}


@dataclass(frozen=True)
class Section:
    """What a part found. difference: between our gradients and autograd's, the largest seen."""

    name: str
    question: str
    text: str  # claim, design and limits, in Markdown
    tables: list[Table]
    claims: list[Claim]
    difference: float
    dtype: str

    @property
    def html(self) -> str:
        return MarkdownIt().render(self.text)

    @property
    def agrees(self) -> bool:
        return self.difference <= ROUNDING[self.dtype]

    @property
    def agreement(self) -> str:
        text = (
            f"gradients, ours against native autograd's, in {self.dtype}: the largest difference "
            f"is {self.difference:.1e} of the largest entry"
        )
        bound = ROUNDING[self.dtype]
        return text if self.agrees else f"{text}; MORE than rounding explains ({bound:g})"


def sections(experiment: Experiment, rows: Rows) -> list[Section]:
    found = []
    for part in experiment.parts:
        own = part_rows(part, rows)
        if len(own):
            found.append(
                Section(
                    part_name(part),
                    first_line(part),
                    text_of(part),
                    part.tables(own),
                    part.claims(own),
                    float(own["gradient_difference"].max()),
                    str(own["part_dtype"].iloc[0]),
                )
            )
    return found


def made(rows: Rows) -> str:
    """What the rows were made with, in a line."""
    first = rows.iloc[0]
    said = ", ".join(f"{name} {first[name]}" for name in MADE_WITH)
    return (
        f"{said}; {rows['seed'].nunique()} seeds (0 to {rows['seed'].max()}), "
        f"{rows['wall_seconds'].max():.0f} s"
    )


def on_screen(section: Section, width: int = 100) -> str:
    lines = [f"{section.name}: {section.question}", ""]
    for table in section.tables:
        lines += [table.title, "", table.text(), ""]
        lines += [textwrap.fill(table.note, width), ""] if table.note else []
    for claim in section.claims:
        text = (
            f"{claim.verdict.upper():9}  {claim.text} ({claim.source}; paper: {claim.paper}). "
            f"Here: {claim.measured}; shown if {claim.threshold}."
        )
        lines.append(textwrap.fill(text, width, subsequent_indent=" " * 11))
    return "\n".join([*lines, "", textwrap.fill(section.agreement, width)])


def as_markdown(experiment: Experiment, rows: Rows, found: list[Section]) -> str:
    name = rows["experiment"].iloc[0]
    lines = [f"# {name}: {experiment.about}", "", f"Made with {made(rows)}.", ""]
    lines += ["Means over seeds +- half the 95 % Student-t interval.", "", f"![]({name}.png)", ""]
    for section in found:
        lines += [f"## {section.name}: {section.question}", ""]
        lines += [section.text, ""] if section.text else []
        for table in section.tables:
            lines += [f"**{table.title}**", "", table.text("github"), ""]
            lines += [table.note, ""] if table.note else []
        lines += [claims_table(section.claims).text("github"), ""] if section.claims else []
        lines += [f"{section.agreement}.", ""]
    return "\n".join(lines)
