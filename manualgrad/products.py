"""Products of matrices on a CPU: ATen's, or oneDNN's where those are faster on this machine.

ATen hands float32 products to MKL. On some CPUs oneDNN, which PyTorch brings along too, is twice as
fast (measured on an AMD EPYC with AVX-512). It adds all terms of an entry up in one row, and rounds
worse the longer that is; MKL adds up 192 terms at a time. So oneDNN gets blocks as well, of at most
256: its error is then up to 1.4 times MKL's on the whole of a product, and 1.9 times where 193 to
256 terms are all positive. Which one is faster here is measured once per process and number of
threads, on first need; so is tanh in the epilogue of oneDNN's product.

Where a CPU has instructions for bfloat16 its products are oneDNN's either way, but ATen copies the
bias into the result first, which takes up to two fifths of the time, and is slow at delta^T a where
a is the wider of the two and examples are many. Where a CPU has none: manualgrad.half_precision.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from manualgrad import compat, half_precision
from manualgrad.measuring import clearly_faster

LARGE = 1 << 22  # multiplications: below, oneDNN's call costs more than it saves
TERMS = 256  # of a sum, added up in one row: with more, oneDNN errs over twice as much as MKL
ROWS, ENTRIES = 256, 1 << 20  # of a result at once: at least, at most; blocks of it are added up
BLOCK = 1 << 23  # multiplications: smaller blocks take as long as MKL does
PAGES = 1 << 23  # entries of a result: new memory for so many costs more than the product
GRAPH = 1 << 25  # multiplications: what a call from a compiled graph has to save
WIDE = 256  # neurons on both sides of a weight, or half as many and four times as many inputs
FEW = 128  # examples: with fewer, BP4 takes longer than MKL's
TINY = 1 << 12  # multiplications in bfloat16: up to so many ATen makes itself, and flushes nothing
TANH = 1 << 15  # entries of a result: for fewer, oneDNN's call costs more than its tanh saves
MANY = 1 << 13  # examples: for fewer, delta^T a in bfloat16 is no slower than (a^T delta)^T


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, alone: bool = False) -> Tensor:
    """x W^T + b.  x (M, K), weight (N, K), bias (N,) or None.

    alone: no activation follows, so that backward will hold no delta beside what is kept.
    """
    (M, K), N = x.shape, weight.shape[0]
    shape = M, N, K
    given = (x, weight) if bias is None else (x, weight, bias)
    if torch.compiler.is_compiling():
        whole = _whole("linear", shape, M, *given)
        return (torch.ops.manualgrad.linear.default if whole else F.linear)(x, weight, bias)
    if half_precision.takes("linear", shape, *given):
        return half_precision.product(x, weight, bias)
    spare = 3 * M * K // (2 * N + TERMS) if alone else 4 * max(M, ROWS)  # beside a copy of weight
    examples = min(M, spare)
    if (spare >= 4 * ROWS or K <= TERMS) and _by_onednn(x, weight, shape, examples):
        return _in_blocks(x, weight, bias, examples=examples)
    if bias is not None and M * N * K > TINY and _bfloat16_by_onednn(x, weight, bias):
        return _onednn(x, weight, bias)
    return F.linear(x, weight, bias)


def linear_tanh(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """tanh(x W^T + b), tanh in oneDNN's epilogue; None where that is no gain.

    There it errs by 0.64 units in the last place (ATen: 0.50), and in bfloat16 the sum is not
    rounded before.
    """
    (M, K), N = x.shape, weight.shape[0]
    if torch.compiler.is_compiling():
        return None
    if x.dtype is torch.bfloat16:
        takes = M * N * K > TINY and _bfloat16_by_onednn(x, weight)
        takes = takes and not half_precision.takes("linear", (M, N, K), x, weight)
    else:
        takes = 0 < K <= TERMS and M * N >= TANH and x.dtype is torch.float32
        takes = takes and torch.backends.mkldnn.enabled and _plain(x, weight)
    terms = max(32, 1 << (min(K, TERMS) - 1).bit_length())  # measured for each power of two
    if not takes or not onednn_tanh_wins(torch.get_num_threads(), x.dtype, terms):
        return None
    return _onednn(x, weight, bias, "tanh")


def error_below(delta: Tensor, weight: Tensor, over: bool = False, at_peak: bool = False) -> Tensor:
    """delta W, BP2's product.  delta (M, N), weight (N, K).

    over: nobody reads delta again, and the result may be written over it. at_peak: nothing that is
    kept has been given back yet, so that oneDNN's blocks may take no memory but delta's or the
    result's. (Those of manualgrad.half_precision take 1.5 MiB at most.)
    """
    (M, N), K = delta.shape, weight.shape[1]
    if torch.compiler.is_compiling():
        whole = _whole("error_below", (M, K, N), M, delta, weight)
        return (torch.ops.manualgrad.error_below.default if whole else torch.mm)(delta, weight)
    if half_precision.takes("error_below", (M, K, N), delta, weight):
        return half_precision.product(delta, weight.t())
    fits = over and K <= N
    if (at_peak and N > TERMS and not fits) or not _by_onednn(delta, weight, (M, K, N), M):
        return delta.mm(weight)
    if fits and (N > TERMS or M * K >= PAGES):
        return _over_left(delta, weight.t(), M).contiguous()
    return _in_blocks(delta, weight.t(), examples=M)


def weight_gradient(delta: Tensor, a: Tensor, into: Tensor | None = None) -> Tensor:
    """delta^T a, BP4's product, added to into.  delta (M, N), a (M, K).  Returns (N, K)."""
    M, N, K = *delta.shape, a.shape[1]
    given = (delta, a) if into is None else (delta, a, into)
    if torch.compiler.is_compiling() and into is None:
        if _whole("weight_gradient", (N, K, M), M, delta, a):
            return torch.ops.manualgrad.weight_gradient.default(delta, a)
    elif half_precision.takes("weight_gradient", (N, K, M), *given):
        return half_precision.product(delta.t(), a.t(), into=into)
    elif _wide(N, K, M) and _by_onednn(delta, a, (N, K, M), M):
        total = _in_blocks(delta.t(), a.t(), examples=M)
        return total if into is None else into.add_(total)
    elif into is None and M >= MANY and K >= 2 * N and _bfloat16_by_onednn(delta, a):
        return a.t().mm(delta).t().contiguous()
    return delta.t().mm(a) if into is None else into.addmm_(delta.t(), a)


def _wide(N: Any, K: Any, M: Any) -> bool:
    """Whether BP4 for a weight (N, K) is more product than blocks, of M terms each."""
    return (min(N, K) >= WIDE or K >= 4 * N >= 2 * WIDE) and M >= FEW


def _rows_at_once(M: int, N: int, examples: int) -> int:
    """Of a result (M, N).  A quarter of examples: blocks and sums take less memory than so many."""
    return min(M, max(ROWS, min(examples // 4, ENTRIES // max(N, TERMS))))


def _parts(M: int, N: int, examples: int) -> int:
    rows = _rows_at_once(M, N, examples)
    return max(1, (M + rows // 2) // rows)


def _in_blocks(left: Tensor, right: Tensor, bias: Tensor | None = None, *, examples: int) -> Tensor:
    """left right^T + bias by oneDNN, at most TERMS terms in one row.

    left (M, K), right (N, K), each of them contiguous or the transpose of what is.
    """
    (M, K), N = left.shape, right.shape[0]
    count = max(-(-K // TERMS), 1)
    if count == 1 and left.is_contiguous():
        return _onednn(left, right, bias)
    total, parts = left.new_empty(M, N), _parts(M, N, examples)
    blocks = zip(left.tensor_split(count, 1), right.tensor_split(count, 1), strict=True)
    for i, (left_block, right_block) in enumerate(blocks):
        right_block = _dense(right_block)
        for rows, some in zip(
            total.tensor_split(parts), left_block.tensor_split(parts), strict=True
        ):
            put = rows.add_ if i else rows.copy_
            put(_onednn(some.contiguous(), right_block, None if i else bias))
    return total


def _over_left(left: Tensor, right: Tensor, examples: int) -> Tensor:
    """left right^T, no wider than left (M, K), over its first columns: read before written."""
    (M, K), N = left.shape, right.shape[0]
    count, parts = max(-(-K // TERMS), 1), _parts(M, N, examples)
    right_blocks = [_dense(block) for block in right.tensor_split(count, 1)]
    result = left if N == K else left[:, :N]
    for rows, some in zip(result.tensor_split(parts), left.tensor_split(parts), strict=True):
        first, *others = some.tensor_split(count, 1)
        total = _onednn(first.contiguous(), right_blocks[0], None)
        for block, right_block in zip(others, right_blocks[1:], strict=True):
            total += _onednn(block.contiguous(), right_block, None)
        rows.copy_(total)
    return result


def _dense(block: Tensor) -> Tensor:
    """A copy, unless it or its transpose is contiguous: oneDNN is slow on anything else."""
    return block if block.t().is_contiguous() else block.contiguous()


def _onednn(left: Tensor, right: Tensor, bias: Tensor | None, epilogue: str = "none") -> Tensor:
    bias = bias if bias is None else bias.contiguous()  # it would read what lies between
    return compat.onednn_linear(left, right, bias, epilogue, [], "")


def _by_onednn(left: Tensor, right: Tensor, shape: tuple[int, int, int], examples: int) -> bool:
    """Whether float32 goes to oneDNN here.  shape: (M, N, K) of (M, K) times (K, N)."""
    return (
        left.dtype is torch.float32
        and _large(*shape, examples)
        and onednn_wins_here()
        and _plain(left, right)
    )


def _large(M: int, N: int, K: int, examples: int) -> bool:
    """Whether oneDNN, where it wins, wins at (M, K) times (K, N): its calls have a price."""
    count = max(-(-K // TERMS), 1)
    if count == 1:
        return M * N * K >= LARGE
    return _rows_at_once(M, N, examples) * N * K >= count * BLOCK


def _whole(name: str, shape: tuple[Any, Any, Any], examples: Any, *tensors: Tensor) -> bool:
    """Whether a graph had better hold this product whole, for us to make.

    What is not fixed in shape is taken for large. In bfloat16 a bias is what we are faster at, if
    not the product itself (manualgrad.half_precision).
    """
    M, N, K, examples = (s if isinstance(s, int) else ENTRIES for s in (*shape, examples))
    dtype, size = tensors[0].dtype, M * N * K
    if tensors[0].device.type != "cpu" or not compat.traced_plain(*tensors):
        return False
    if half_precision.takes_in_graph(name, (M, N, K), *tensors):
        return True
    if size < GRAPH or (name == "weight_gradient" and not _wide(M, N, K)):
        return False
    if dtype is torch.bfloat16:
        biased = len(tensors) == 3
        return biased and torch.backends.mkldnn.enabled and compat.onednn_has_bfloat16()
    return dtype is torch.float32 and _large(M, N, K, examples) and onednn_wins_here()


def _bfloat16_by_onednn(*tensors: Tensor) -> bool:
    """Whether ATen, too, leaves these to oneDNN."""
    return (
        all(tensor.dtype is torch.bfloat16 for tensor in tensors)
        and torch.backends.mkldnn.enabled
        and compat.onednn_has_bfloat16()
        and _plain(*tensors)
    )


def _plain(*tensors: Tensor) -> bool:
    """Contiguous, and there to be read."""
    return compat.readable(*tensors) and all(tensor.is_contiguous() for tensor in tensors)


def onednn_wins_here() -> bool:
    """onednn_wins on as many threads as torch uses now."""
    return torch.backends.mkldnn.enabled and onednn_wins(torch.get_num_threads())


@functools.cache
def onednn_wins(threads: int) -> bool:
    """Whether oneDNN is clearly the faster here: measured, some hundredths of a second."""
    return _onednn_faster("oneDNN's product", "none", F.linear, threads, torch.float32, TERMS)


@functools.cache
def onednn_tanh_wins(threads: int, dtype: torch.dtype, terms: int) -> bool:
    """Whether tanh of sums of so many terms is clearly faster in oneDNN's epilogue: measured."""

    def by_aten(x: Tensor, weight: Tensor) -> Tensor:
        return torch.tanh_(F.linear(x, weight))

    name = f"oneDNN's tanh of {terms} terms"
    return _onednn_faster(name, "tanh", by_aten, threads, dtype, terms)


def _onednn_faster(
    name: str, epilogue: str, usual: Callable, threads: int, dtype: torch.dtype, terms: int
) -> bool:
    if compat.onednn_linear is None:
        return False
    by_onednn = functools.partial(_onednn, bias=None, epilogue=epilogue)
    shapes = (1024, terms), (terms, terms)
    return clearly_faster(name, by_onednn, usual, shapes, dtype, threads)


# the same as operators, which a graph of torch.compile holds whole: it leaves products to ATen, and
# fuses what is elementwise around them

LIBRARY = torch.library.Library("manualgrad", "FRAGMENT")
# signature: (kernel, fake)
OPERATORS: dict[str, tuple[Callable[..., Tensor], Callable[..., Any]]] = {
    "linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor": (
        linear,
        lambda x, weight, bias: x.new_empty(x.shape[0], weight.shape[0]),
    ),
    "error_below(Tensor delta, Tensor weight) -> Tensor": (
        error_below,
        lambda delta, weight: delta.new_empty(delta.shape[0], weight.shape[1]),
    ),
    "weight_gradient(Tensor delta, Tensor a) -> Tensor": (
        weight_gradient,
        lambda delta, a: delta.new_empty(delta.shape[1], a.shape[1]),
    ),
}

for _signature, (_kernel, _fake) in OPERATORS.items():
    _name = _signature.partition("(")[0]
    LIBRARY.define(_signature, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"manualgrad::{_name}", _fake, lib=LIBRARY)
