"""Oracle and symbolic, of an activation's formulas: is sigma that function, are sigma' and sigma''
its derivatives? Asked of the registered record, before any layer is built on it.
"""

import math
from collections.abc import Iterator

import torch

from manualgrad.activations import Activation
from manualgrad.formula import rounded_once
from manualgrad.verify import tolerance
from manualgrad.verify.judges import Check, NotRun, first_line
from manualgrad.verify.readings import Reading, compare

# where the derivatives are evaluated: on both sides of the usual kinks, and in the tails
POINTS = (-7.3, -3.1, -2.31, -0.7, -0.02, 0.03, 0.4, 1.9, 2.7, 3.3, 6.5, 21.0)
DIGITS = 40
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def sigma_is_its_oracle(act: Activation) -> Iterator[Reading]:
    """On a grid, in four dtypes, beside what rounding z and the result does to the oracle."""
    for dtype in DTYPES:
        z = torch.linspace(-25, 25, 1001, dtype=torch.float64).to(dtype)
        ours = rounded_once(act.sigma, z).double()
        truth, limit = _of_oracle(act, z)
        yield compare(f"sigma on [-25, 25] in {dtype}", ours, truth, limit)


def sigma_far_out(act: Activation) -> Iterator[Reading]:
    """Where the oracle has a value sigma has it too, and NaN stays NaN."""
    z = torch.tensor([-math.inf, -1e4, -300.0, 300.0, 1e4, math.inf] * 9, dtype=torch.float64)
    truth, limit = _of_oracle(act, z)
    ours = torch.where(truth.isnan(), truth, act.sigma(z))
    yield compare("sigma at +-300, +-10^4 and +-inf", ours, truth, limit)
    nan = act.sigma(torch.full((9,), math.nan, dtype=torch.float64))
    yield compare("sigma(NaN) being NaN", nan.isnan(), torch.ones_like(nan, dtype=torch.bool), 0.0)


def _of_oracle(act: Activation, z: torch.Tensor) -> tuple[torch.Tensor, float]:
    """(the oracle's values in float64, what rounding z and the result may cost)."""
    truth = act.oracle(z.double())
    others = [tolerance.rounded_otherwise([z], draw)[0] for draw in (1, 2)]
    moved = max(tolerance.largest(act.oracle(other.double()) - truth) for other in others)
    return truth, tolerance.beside_rounding(truth, moved, z.dtype)


def kinks_take_the_oracles_side(act: Activation) -> Iterator[Reading]:
    """At a kink sigma' is what torch takes."""
    if not act.kinks:
        raise NotRun("it has no kinks")
    z = torch.tensor(act.kinks, dtype=torch.float64, requires_grad=True)
    (truth,) = torch.autograd.grad(act.oracle(z).sum(), z)
    s = z.detach() if act.keeps == "z" else act.sigma(z.detach())
    ours = torch.as_tensor(act.sigma_prime(s), dtype=torch.float64).expand_as(truth)
    limit = tolerance.beside_rounding(truth, 0.0, torch.float64)
    yield compare("sigma' at the kinks", ours, truth, limit)


def derivatives_by_sympy(act: Activation) -> Iterator[Reading]:
    """sigma' and sigma'' against SymPy's derivatives of sigma's own text, to 40 digits."""
    try:
        import sympy
    except ImportError as error:
        raise NotRun("sympy is not installed") from error
    z = sympy.Symbol("z", real=True)
    try:
        sigma = act.sigma(z)
        s = sigma if act.keeps == "a" else z
        formulas = {"sigma'": act.sigma_prime(s), "sigma''": act.sigma_second(s)}
    except Exception as error:
        raise NotRun(f"SymPy cannot read the formula ({first_line(error)})") from error
    for order, (name, formula) in enumerate(formulas.items(), start=1):
        right = sympy.diff(sigma, z, order)
        for point in POINTS:
            if any(abs(point - kink) < 1e-3 for kink in act.kinks):
                continue
            at = sympy.Float(point, DIGITS)
            got, want = (
                float(sympy.sympify(e).subs(z, at).evalf(DIGITS)) for e in (formula, right)
            )
            limit = tolerance.SLACK * tolerance.unit(torch.float64) * max(1.0, abs(want))
            text = f"{name}({point}) is {got:.9g}, the derivative of sigma there is {want:.9g}"
            yield Reading(text, abs(got - want), limit)


FORMULA_CHECKS = (
    Check("oracle", "sigma on a grid", sigma_is_its_oracle),
    Check("oracle", "sigma far out", sigma_far_out),
    Check("conduct", "sigma' at the kinks", kinks_take_the_oracles_side),
    Check("symbolic", "sigma' and sigma''", derivatives_by_sympy),
)
