"""The documents: their code runs, their tables and links are true."""

import contextlib
import io
import pathlib
import re

import pytest
import torch
from families import needed
from test_activations import LIMITS

import manualgrad as mg
from manualgrad.activations import ACTIVATIONS
from manualgrad.backends import TABLE

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]


def relative(path):
    return path.relative_to(ROOT).as_posix()


def blocks(path):
    """The Python blocks that stand alone: those that import what they use."""
    return [b for b in re.findall(r"```python\n(.*?)```", path.read_text(), re.S) if "import " in b]


# a text block after a Python block is what that prints
SHOWN = re.compile(
    r"```python\n(?P<code>(?:(?!```).)*?)```(?:(?!```).)*?```text\n(?P<output>.*?)```", re.S
)
OUTPUTS = [(path, m) for path in DOCUMENTS for m in SHOWN.finditer(path.read_text())]


def ready(code):
    """Skip a block that uses a library which is not there."""
    for library in re.findall(r"^(?:import|from) (timm|transformers)", code, re.M):
        needed(library)
    return code


def printed(code):
    """What a block prints, with one thread and the seed 0."""
    ready(code)
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "example.py", "exec"), {})
    return out.getvalue()


def without_numbers(text):
    """Digits differ between machines, and the widths of columns with them."""
    return re.sub(r"-+|\s+", " ", re.sub(r"-?\d+(\.\d+)?(e[-+]\d+)?", "#", text)).split()


CODE = [(path, i) for path in DOCUMENTS for i in range(len(blocks(path)))]
SHOW = torch.__version__[:5] == "2.13."  # the documents show what it prints
PRINTED = {(path, m["code"]) for path, m in OUTPUTS if SHOW}  # run where their output is compared
RUN = [(path, i) for path, i in CODE if (path, blocks(path)[i]) not in PRINTED]


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(("path", "i"), RUN, ids=[f"{relative(p)}-{i}" for p, i in RUN])
def test_code_runs(path, i):
    exec(compile(ready(blocks(path)[i]), relative(path), "exec"), {})


@pytest.mark.skipif(not SHOW, reason="the documents show torch 2.13")
@pytest.mark.parametrize(
    ("path", "shown"), OUTPUTS, ids=[f"{relative(p)}-{m.start()}" for p, m in OUTPUTS]
)
def test_outputs_are_what_is_printed(path, shown):
    assert without_numbers(printed(shown["code"])) == without_numbers(shown["output"])


@pytest.mark.parametrize(
    "code", [m["code"] for _, m in OUTPUTS], ids=[f"{relative(p)}-{m.start()}" for p, m in OUTPUTS]
)
def test_what_is_shown_comes_out_again(code):
    assert "torch.rand" not in code or "torch.manual_seed(" in code


def test_there_is_code():
    assert {relative(path) for path, _ in CODE} >= {"README.md", "docs/activations.md"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


def test_the_table_of_activations_is_the_registry():
    rows = {}
    for line in (ROOT / "docs" / "activations.md").read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)]
        if len(cells) == 9 and cells[1].startswith("`"):
            rows[cells[1].strip("`")] = cells[2:]
    assert sorted(rows) == mg.activations()
    for name, (sigma, sigma_prime, keeps, kinks, *limits, _) in rows.items():
        act = ACTIVATIONS[name]
        assert kinks == (", ".join(f"{kink:g}" for kink in act.kinks) or "-")
        (low, slope_low), (high, slope_high) = LIMITS[name]
        for cell, want in zip(limits, ((low, high), (slope_low, slope_high)), strict=True):
            shown = [float(number) for number in cell.split(",")]
            assert shown == pytest.approx(want, rel=1e-3, nan_ok=True)
        for cell, formula in ((sigma, act.sigma), (sigma_prime, act.sigma_prime)):
            assert cell.strip("`").replace("\\|", "|") == formula.__doc__
        assert keeps == ("nothing" if act.is_identity else act.keeps)


def test_the_table_of_backends_is_the_librarys():
    text = (ROOT / "docs" / "kernels.md").read_text()
    rows = re.findall(r"\| (aten|cublaslt|hybrid|triton) \| ([^|]+) \|$", text, re.M)
    assert rows == [(row.backend, row.reason) for row in TABLE]


def test_every_equation_stands_in_the_table():
    text = (ROOT / "docs" / "equations.md").read_text()
    for number in [*(f"({n})" for n in range(1, 14)), "BP1", "BP2", "BP3", "BP4"]:
        assert f"| {number}" in text, number


def write_outputs():
    """Run by hand, python tests/test_docs.py: put what the blocks print into the documents."""
    for path in DOCUMENTS:
        text = path.read_text()
        for m in reversed(list(SHOWN.finditer(text))):
            text = text[: m.start("output")] + printed(m["code"]) + text[m.end("output") :]
        path.write_text(text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_outputs()
