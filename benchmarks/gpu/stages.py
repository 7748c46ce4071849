"""The stages: what is measured on a GPU, in the order in which it decides things."""

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import manualgrad as mg
from benchmarks.gpu.bench import Bench, Row, Steps, compare, difference, kernels, tiles
from manualgrad.activations import ACTIVATIONS

SHAPES = [(8192, 1024, 1024), (8192, 4096, 1024), (8192, 1024, 4096), (8192, 4096, 4096)]


def products(bench: Bench) -> Iterable[Row]:
    """Triton's plain product against cuBLAS's, per tile and layout."""
    act = ACTIVATIONS["identity"]
    for M, N, K in bench.shapes(SHAPES + [(16384, 2048, 2048)]):
        x, weight, delta = bench.randn(M, K), bench.randn(N, K, scale=K**-0.5), bench.randn(M, N)
        layouts: dict[str, tuple[Callable, Callable]] = {
            "linear_act_forward": (
                lambda tile: kernels.linear_act_forward(x, weight, None, act, tile=tile),
                lambda: F.linear(x, weight),
            ),
            "bp2_propagate_error": (
                lambda tile: kernels.bp2_propagate_error(delta, weight, x, act, tile=tile),
                lambda: delta.mm(weight),
            ),
            "bp4_weight_gradient": (
                lambda tile: kernels.bp4_weight_gradient(delta, x, tile=tile),
                lambda: delta.t().mm(x),
            ),
        }
        for operation, (ours, theirs) in layouts.items():
            steps = {
                str(tile): (lambda tile=tile, ours=ours: ours(tile))
                for tile in tiles(bench, operation)
            }
            yield from compare(bench, steps, {"cuBLAS": theirs}, operation=operation, M=M, N=N, K=K)


def epilogues(bench: Bench) -> Iterable[Row]:
    """What an epilogue costs: the fused kernel against its own plain product."""
    for M, N, K in bench.shapes(SHAPES[:2]):
        x, weight, delta = bench.randn(M, K), bench.randn(N, K, scale=K**-0.5), bench.randn(M, N)
        plain = ACTIVATIONS["identity"]
        for tile in tiles(bench, "bp2_propagate_error")[:2]:
            acts = {name: ACTIVATIONS[name] for name in ("relu", "silu", "gelu", "gelu_tanh")}
            steps: Steps = {
                name: (lambda a=act: kernels.bp2_propagate_error(delta, weight, x, a, tile=tile))
                for name, act in acts.items()
            }
            steps["identity"] = lambda: kernels.bp2_propagate_error(
                delta, weight, x, plain, tile=tile
            )
            times = bench.milliseconds(steps)
            for name, ms in times.items():
                yield {"operation": "bp2_propagate_error", "M": M, "N": N, "K": K,
                       "tile": str(tile), "ours": name, "theirs": "identity", "ours_ms": ms,
                       "theirs_ms": times["identity"], "ratio": ms / times["identity"]}  # fmt: skip


def hybrid(bench: Bench) -> Iterable[Row]:
    """BP2 whole: the fused kernel and cuBLAS + one pass, against ATen's passes."""
    for name in ("relu", "silu", "gelu"):
        act = ACTIVATIONS[name]
        for M, N, K in bench.shapes(SHAPES):
            weight, delta, s = (
                bench.randn(N, K, scale=N**-0.5),
                bench.randn(M, N),
                bench.randn(M, K),
            )
            theirs = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu}[name]
            z = s.clone().requires_grad_()
            a = theirs(z)

            def eager(delta=delta, weight=weight, a=a, z=z):
                (below,) = torch.autograd.grad(a, z, delta.mm(weight), retain_graph=True)
                return below, below.sum(0)

            def one_pass(delta=delta, weight=weight, s=s, act=act):
                below, rows, _ = kernels.sigma_prime_pass(
                    delta.mm(weight), s, act, with_a=False, in_place=True
                )
                return below, kernels.bp3_bias_gradient(rows, bench.dtype)

            def fused(delta=delta, weight=weight, s=s, act=act):
                below, rows, _ = kernels.bp2_propagate_error(delta, weight, s, act, with_a=False)
                return below, kernels.bp3_bias_gradient(rows, bench.dtype)

            yield from compare(
                bench,
                {"hybrid": one_pass, "triton": fused},
                {"eager": eager},
                operation="bp2 + bp3", activation=name, M=M, N=N, K=K,
            )  # fmt: skip


def relu_epilogue(bench: Bench) -> Iterable[Row]:
    """cuBLAS's own ReLU epilogue: its time, and whether NaN passes through."""
    for M, N, K in bench.shapes(SHAPES):
        x, weight, bias = bench.randn(M, K), bench.randn(N, K, scale=K**-0.5), bench.randn(N)
        keeps = {}
        for dtype in (torch.bfloat16, torch.float16):
            poisoned = x.to(dtype, copy=True)
            poisoned[0, 0] = torch.nan
            a = torch._addmm_activation(bias.to(dtype), poisoned, weight.t().to(dtype))
            keeps[str(dtype)] = bool(a[0].isnan().all())
        yield from compare(
            bench,
            {"cublaslt": lambda: torch._addmm_activation(bias, x, weight.t())},
            {"addmm, relu": lambda: torch.relu_(F.linear(x, weight, bias))},
            operation="linear_act_forward", M=M, N=N, K=K, NaN_passes=keeps,
        )  # fmt: skip


def launches(bench: Bench) -> Iterable[Row]:
    """Host time of one launch, with pointers and with descriptors, against ATen's."""
    act = ACTIVATIONS["relu"]
    x, weight = bench.randn(64, 64), bench.randn(64, 64)
    all_tiles = tiles(bench, "linear_act_forward")
    steps: Steps = {"aten addmm": lambda: F.linear(x, weight)}
    for tile in (all_tiles[0], all_tiles[-1]):
        steps[str(tile)] = lambda tile=tile: kernels.linear_act_forward(
            x, weight, None, act, tile=tile
        )
    steps["sigma_pass"] = lambda: kernels.sigma_pass(x, act)
    for name, step in steps.items():
        times, calls = [], 1 if bench.dry else 300
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(calls):
                step()
            times.append((time.perf_counter() - start) / calls)
            if not bench.dry:
                torch.cuda.synchronize()
        yield {"ours": name, "host_us": 1e6 * statistics.median(times)}


def fast_forms(bench: Bench) -> Iterable[Row]:
    """Errors of sigma and sigma' as compiled for 16-bit results, in units of bfloat16's eps."""
    points = torch.linspace(-20, 20, 200 if bench.dry else 400001, device=bench.device)
    z, one = points.to(bench.dtype)[:, None].contiguous(), torch.ones_like(points)[:, None]
    unit = torch.finfo(bench.dtype).eps
    for name, act in sorted(ACTIVATIONS.items()):
        if act.is_identity:
            continue
        s = z if act.keeps == "z" else act.sigma(z.float()).to(bench.dtype)
        errors = {}
        for which, ours, truth in (
            ("sigma", kernels.sigma_pass(z, act), act.sigma(z.double())),
            ("sigma'", kernels.bp1_output_error(one.to(bench.dtype), s, act)[0],
             act.sigma_prime(s.double())),
        ):  # fmt: skip
            error = (ours.double() - truth).abs() / truth.abs().clamp(min=2.0**-14)
            errors[which] = float(error.max()) / unit
        yield {"activation": name, "largest relative error / eps": errors}


def chains(bench: Bench) -> Iterable[Row]:
    """A training step of a whole chain: ours against eager and torch.compile; peak memory."""
    for name, module in (("relu", nn.ReLU), ("gelu", nn.GELU), ("silu", nn.SiLU)):
        for width in (1024, 2048):
            M, width = map(bench.size, (8192, width))
            linears = [nn.Linear(width, width) for _ in range(2 if bench.dry else 8)]
            eager = nn.Sequential(*(m for linear in linears for m in (linear, module())))
            eager = eager.to(bench.device, bench.dtype)
            ours = mg.nn.MLP.from_sequential(eager)
            x, grad = bench.randn(M, width), bench.randn(M, width)
            about = {"chain": f"{len(linears)} x {width}", "activation": name, "M": M}
            theirs = {"eager": step_of(eager, x, grad)}
            if not bench.dry:
                torch.compiler.reset()
                theirs["torch.compile"] = step_of(torch.compile(eager), x, grad)
            mine = step_of(ours, x, grad)
            exact = copy.deepcopy(eager).float()
            gap = difference(theirs["eager"](), step_of(exact, x.float(), grad.float())())
            allowed = 3 * gap + torch.finfo(bench.dtype).eps  # then ours errs at most twice as much
            rows = compare(bench, {"manualgrad": mine}, theirs, allowed, **about)
            if not bench.dry:
                peaks = {label: peak(s) for label, s in {"ours": mine, **theirs}.items()}
                rows[0]["peak_MiB"] = peaks
            yield from rows


def narrow(bench: Bench) -> Iterable[Row]:
    """A training step of a narrow chain in one kernel each way, and the activations' memory."""
    shapes = [(20, 64, 4), (20, 64, 8), (20, 32, 8), (20, 16, 4), (15, 64, 4), (10, 64, 4)]
    shapes += [(20, 128, 4)]  # forward alone
    for power, width, depth in shapes[:1] if bench.dry else shapes:
        M, depth = bench.size(1 << power), 2 if bench.dry else depth
        sizes = [3, *[width] * (depth - 1), 4]
        pairs = [(nn.Linear(K, N), nn.ReLU()) for K, N in itertools.pairwise(sizes)]
        eager = nn.Sequential(*itertools.chain(*pairs)).to(bench.device, bench.dtype)
        ours = mg.nn.MLP.from_sequential(eager)
        x, grad = bench.randn(M, 3), bench.randn(M, 4)
        theirs = {"eager": step_of(eager, x, grad)}
        if (power, width) == (20, 64) and not bench.dry:
            torch.compiler.reset()
            theirs["torch.compile"] = step_of(torch.compile(eager), x, grad)
        exact = copy.deepcopy(eager).float()
        gap = difference(theirs["eager"](), step_of(exact, x.float(), grad.float())())
        allowed = 3 * gap + torch.finfo(bench.dtype).eps
        with mg.backend("narrow"):
            mine = {"manualgrad": step_of(ours, x, grad)}
            chain = f"{depth} x {width}, 2^{power} rows"
            rows = compare(bench, mine, theirs, allowed, chain=chain, M=M)
            if not bench.dry:
                named = {"ours": mine["manualgrad"], **theirs}
                rows[0]["peak_MiB"] = {label: peak(step) for label, step in named.items()}
        yield from rows


def graphs(bench: Bench) -> Iterable[Row]:
    """A whole training step of a small network, captured in a CUDA graph and replayed."""
    for name, width in (("narrow", 64), ("wide", 256)):
        sizes = [width] * (3 if bench.dry else 9)
        net = mg.nn.MLP(sizes, "gelu", device=bench.device, dtype=bench.dtype)
        x, grad = bench.randn(bench.size(256), width), bench.randn(bench.size(256), width)
        plain, replayed = training(net, x, grad), training(net, x, grad)
        if not bench.dry:
            replayed = captured(replayed)
        chain = f"{len(sizes) - 1} x {width}, {name}, 256 rows"
        yield from compare(bench, {"graph": replayed}, {"no graph": plain}, chain=chain)


def training(net: nn.Module, x: torch.Tensor, grad: torch.Tensor) -> Callable[[], torch.Tensor]:
    """One step that leaves the parameters as they are: with a learning rate of 0."""
    optimiser = torch.optim.SGD(net.parameters(), lr=0.0)

    def step() -> torch.Tensor:
        optimiser.zero_grad(set_to_none=True)
        a = net(x)
        a.backward(grad)
        optimiser.step()
        return a.detach()

    return step


def captured(step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """step as a CUDA graph: warmed up in a stream of its own, as PyTorch asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> torch.Tensor:
        graph.replay()
        return result

    return replay


def step_of(net: Any, x: torch.Tensor, grad: torch.Tensor) -> Callable[[], torch.Tensor]:
    parameters = list(net.parameters())
    return lambda: torch.autograd.grad(net(x), parameters, grad)[0]


def peak(step: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


STAGES = {
    "fast_forms": fast_forms,
    "narrow": narrow,
    "graphs": graphs,
    "products": products,
    "epilogues": epilogues,
    "hybrid": hybrid,
    "relu_epilogue": relu_epilogue,
    "launches": launches,
    "chains": chains,
}
