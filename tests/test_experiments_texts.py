"""What is written beside each part of the experiments, and what their page of documentation links."""

import pathlib
import re

import pytest

from experiments.__main__ import EXPERIMENTS
from experiments.study import part_name, text_of

ROOT = pathlib.Path(__file__).parents[1]
PARTS = [(name, part) for name, one in EXPERIMENTS.items() for part in one.parts]
IDS = [f"{name}.{part_name(part)}" for name, part in PARTS]


@pytest.mark.parametrize(("name", "part"), PARTS, ids=IDS)
def test_every_part_has_its_claim_design_and_limits(name, part):
    starts = [paragraph.split()[0] for paragraph in text_of(part).split("\n\n")]
    assert starts == ["**Claim.**", "**Design.**", "**Limits.**"]
    assert max(map(len, text_of(part).splitlines())) <= 110
    written = (ROOT / "results" / f"{name}.md").read_text()
    assert text_of(part) in written, "results/ are of an older text: run the experiment again"


def anchor(heading):
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_page_of_documentation_links_every_part():
    page = (ROOT / "docs" / "experiments.md").read_text()
    there = {
        f"../results/{name}.md#{anchor(line.removeprefix('## '))}"
        for name in EXPERIMENTS
        for line in (ROOT / "results" / f"{name}.md").read_text().splitlines()
        if line.startswith("## ")
    }
    assert len(there) == len(PARTS)
    assert set(re.findall(r"\]\((\.\./results/\w+\.md#[^)]*)\)", page)) == there
