"""A small GPT trained by hand, beside torch.autograd."""

import copy
from pydoc_data.topics import topics

import pytest
import torch
import torch.nn.functional as F
from gpt import GPT, Block
from torch.nn.utils import clip_grad_norm_

import manualgrad as mg

STEPS, BATCH, TIME = 50, 8, 16


@pytest.fixture(scope="module")
def batches():
    """Characters of CPython's own help texts, the same batches for everyone: (vocabulary, steps)."""
    text = topics["assert"] + topics["while"] + topics["for"]
    vocabulary = sorted(set(text))
    data = torch.tensor([vocabulary.index(c) for c in text])
    starts = torch.randint(
        len(data) - TIME - 1, (STEPS, BATCH), generator=torch.Generator().manual_seed(0)
    )
    windows = data[starts[..., None] + torch.arange(TIME + 1)]
    return len(vocabulary), [(w[:, :-1], w[:, 1:]) for w in windows]


def cost(model, tokens, targets):
    return F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())


def by_hand(model, tokens, targets):
    with mg.dag.record() as tape:
        loss = cost(model, tokens, targets)
    tape.backward(loss)
    for p in model.parameters():
        p.grad = tape.adjoint(p)
    return loss.item()


def same_rules(model, tokens, targets):
    with mg.dag.through_autograd():
        loss = cost(model, tokens, targets)
    loss.backward()
    return loss.item()


def native(model, tokens, targets):
    loss = cost(model, tokens, targets)
    loss.backward()
    return loss.item()


def trained(model, batches, gradients):
    """The losses of SGD with momentum and clipping, and the trained model."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for tokens, targets in batches:
        optimizer.zero_grad()
        losses.append(gradients(model, tokens, targets))
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return torch.tensor(losses, dtype=torch.float64), model


def test_fifty_steps_by_hand_are_torchs(batches):
    characters, steps = batches
    torch.manual_seed(0)
    model = GPT(characters).double()
    ours, mine = trained(model, steps, by_hand)
    same, _ = trained(model, steps, same_rules)
    theirs, reference = trained(model, steps, native)
    assert torch.equal(ours, same)  # bit for bit: the same rules under the other engine
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    for p, q in zip(mine.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)
    assert ours[-5:].mean() < 0.75 * ours[0]  # it learns


@pytest.mark.parametrize("norm_first", [True, False])
def test_torchs_own_block(norm_first):
    """nn.TransformerEncoderLayer, attention weights asked for or not, a causal mask."""
    how = {"batch_first": True, "norm_first": norm_first, "dropout": 0.0, "dtype": torch.float64}
    block = torch.nn.TransformerEncoderLayer(12, 3, 24, activation="gelu", **how)
    x, mask = (
        torch.randn(2, 5, 12).double(),
        torch.nn.Transformer.generate_square_subsequent_mask(5),
    )
    mask = mask.double()
    v = torch.randn_like(x)
    with mg.dag.record(block) as tape:
        y = block(tape.watch(x), src_mask=mask)
    tape.backward(y, v)
    leaf = x.clone().requires_grad_()
    block(leaf, src_mask=mask).backward(v)
    for p in block.parameters():
        torch.testing.assert_close(tape.adjoint(p), p.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(tape.adjoint(x), leaf.grad, rtol=1e-12, atol=1e-12)


def test_the_block_alone():
    """Every parameter of a pre-norm block, its forks, and float32 beside float64."""
    block, x = Block(12, 3).double(), torch.randn(2, 5, 12).double()
    v = torch.randn_like(x)
    with mg.dag.record(block) as tape:
        y = block(tape.watch(x))
    tape.backward(y, v)
    leaf = x.clone().requires_grad_()
    block(leaf).backward(v)
    for name, p in block.named_parameters():
        assert tape.node(p).name == name
        torch.testing.assert_close(tape.adjoint(p), p.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(tape.adjoint(x), leaf.grad, rtol=1e-12, atol=1e-12)
    skip, branch = tape.contributions(x)  # the fork at the block's entrance
    assert torch.equal(tape.adjoint(x), skip + branch)
    assert [n.name for n in tape.successors(x)] == ["add", "layer_norm"]
