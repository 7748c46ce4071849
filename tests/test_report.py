"""The documents' tables of measurements are the records'."""

import pytest

from benchmarks import report


@pytest.mark.parametrize("document", report.DOCUMENTS, ids=lambda path: path.name)
def test_tables_are_the_records(document):
    text = document.read_text()
    assert text == report.written(text), "python -m benchmarks.report writes them"


def test_every_kind_of_table_is_shown():
    shown = {m["kind"] for d in report.DOCUMENTS for m in report.MARKED.finditer(d.read_text())}
    assert shown == set(report.KINDS)


def test_a_table_that_was_edited_is_written_anew():
    path = next(d for d in report.DOCUMENTS if d.name == "measurements.md")
    text = path.read_text()
    assert text.count("<!-- measured:") == text.count("<!-- end -->")
    edited = text.replace("| eager | both | 36 | ", "| eager | both | 36 | 9", 1)
    assert edited != text
    assert report.written(edited) == text


def test_losses_are_marked_and_bfloat16_is_the_later_runs():
    assert report.ratio(0.969) == "**0.97**"
    assert report.ratio(0.97) == "0.97"
    folder = "amd-epyc-family-25-model-1-2-cores-avx2"
    later = report.record(f"{folder}/bfloat16", "mlp")["rows"]
    rows = [row for row in report.of_the_grid(folder) if row["suite"] == "mlp"]
    assert [r for r in rows if r["dtype"] == "bfloat16"] == [{"suite": "mlp", **r} for r in later]
    assert "varied" not in {key for row in report.of_the_grid(folder) for key in row}
