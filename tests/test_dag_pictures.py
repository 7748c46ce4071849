"""A tape as text, as Graphviz's language and as a picture."""

import re

import pytest
import torch
from dag_models import Block, numbers, recorded

import manualgrad as mg


def test_text_and_graphviz():
    model = Block()
    tape, _ = recorded(model, numbers(5, 4), numbers(5, 3))
    text, dot = str(tape), tape.to_dot()
    assert "first.weight" in text
    assert "|adjoint|" in text
    assert dot.startswith("digraph tape {")
    assert dot.count("->") == sum(p is not None for n in tape.nodes for p in n.parents)
    h = next(n for n in tape.nodes if len(n.received) == 2)
    for sent in h.received:
        size = f"{torch.linalg.vector_norm(sent.adjoint).item():.3g}"
        assert re.search(rf'v{h.index} -> v{sent.successor} .*label="{re.escape(size)}"', dot)
        assert f"{size} ({sent.successor})" in text


def test_a_picture_written_whole_or_not_at_all(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    tape, _ = recorded(Block(), numbers(5, 4), numbers(5, 3))
    for name, head in (("tape.png", b"\x89PNG"), ("tape.svg", b"<?xml")):
        tape.draw(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(head)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tape.png", "tape.svg"]
    kept = (tmp_path / "tape.svg").read_text()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        tape.draw(tmp_path / "tape.svg")
    assert (tmp_path / "tape.svg").read_text() == kept
    assert len(list(tmp_path.iterdir())) == 2
    with mg.dag.record() as deep:
        a = deep.watch(numbers(1))
        for _ in range(300):
            a = a * 1.0
    with pytest.raises(ValueError, match="room for 1 to 200 nodes"):
        deep.draw(tmp_path / "deep.png")


def test_a_picture_in_no_folder_names_that_folder(tmp_path):
    pytest.importorskip("matplotlib")
    tape, _ = recorded(Block(), numbers(5, 4), numbers(5, 3))
    with pytest.raises(FileNotFoundError, match=r"no folder .*absent") as caught:
        tape.draw(tmp_path / "absent" / "pic.png")
    assert caught.value.filename == str(tmp_path / "absent" / "pic.png")
    assert ".tmp" not in str(caught.value)
