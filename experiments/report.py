"""One page of everything that experiments found, from their files of rows alone."""

import base64
import pathlib
from typing import Any

import jinja2
from tqdm import tqdm

from experiments.pictures import picture
from experiments.records import RecordError, read_csv, write_whole
from experiments.rendering import made, sections
from experiments.study import Experiment

ABOUT = "One page, report.html, of all tables, pictures and verdicts in --out."
PAGE = pathlib.Path(__file__).with_name("report.html.jinja")


def build(out: pathlib.Path, experiments: dict[str, Experiment]) -> int:
    """Write report.html from the NAME.csv that are there; 1 if there is none."""
    pages = []
    for name, experiment in tqdm(experiments.items(), desc="report", leave=False, disable=None):
        file = out / f"{name}.csv"
        if file.exists():
            pages.append(_page(name, experiment, file))
    if not pages:
        raise RecordError(f"{out} holds no {', '.join(f'{n}.csv' for n in experiments)} to report")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    file = out / "report.html"
    page = environment.from_string(PAGE.read_text()).render(experiments=pages)
    write_whole({file: page.encode()})
    print(f"written: {file}, of {', '.join(page['name'] for page in pages)}")
    return 0


def _page(name: str, experiment: Experiment, file: pathlib.Path) -> dict[str, Any]:
    rows = read_csv(file)
    try:
        found, png = sections(experiment, rows), picture(experiment, rows)
        line, _ = made(rows), [section.agreement for section in found]
    except (AttributeError, LookupError, ValueError, TypeError, ArithmeticError) as error:
        raise RecordError(
            f"{file} does not hold what the experiment writes ({error}); run {name} again"
        ) from error
    verdicts = [claim.verdict for section in found for claim in section.claims]
    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
    return {
        "name": name,
        "about": experiment.about,
        "made": line,
        "png": base64.b64encode(png).decode(),
        "sections": found,
        "counts": ", ".join(f"{count} {verdict}" for verdict, count in counts.items()),
    }
