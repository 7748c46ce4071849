"""The elementary functions a formula may call, spelled for the device.

The only file that knows how Triton writes exp, erf or where. expm1, log1p and tanh do not exist
there; they are built so that they keep their digits near 0 (Kahan's quotients).

FAST spells six of them with fewer instructions, for results that are rounded to 16 bits anyway:
their errors are about 1e-6 relative, or 1e-7 absolute for erf. Portable Triton, no assembler: the
interpreter runs the very same text that a GPU does.
"""

import dis
import functools
import types
from typing import Any

import triton
import triton.language as tl
from triton import knobs


@triton.jit
def exp(x):
    return tl.exp(x)


@triton.jit
def expm1(x):
    u = tl.exp(x)
    quotient = (u - 1.0) * x / tl.log(u)
    return tl.where(
        u == 1.0, x, tl.where((u - 1.0 == -1.0) | (u == float("inf")), u - 1.0, quotient)
    )


@triton.jit
def log1p(x):
    u = 1.0 + x
    quotient = tl.log(u) * x / (u - 1.0)
    return tl.where(u == 1.0, x, tl.where(u == float("inf"), u, quotient))


@triton.jit
def erf(x):
    return tl.erf(x)


@triton.jit
def tanh(x):
    size = tl.abs(x)
    e = expm1(-2.0 * size)
    magnitude = tl.where(size < 0.5, -e / (e + 2.0), 1.0 - 2.0 / (1.0 + tl.exp(2.0 * size)))
    return tl.where(x < 0, -magnitude, magnitude)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def sin(x):
    return tl.sin(x)


@triton.jit
def cos(x):
    return tl.cos(x)


@triton.jit
def absolute(x):
    return tl.abs(x)


@triton.jit
def maximum(x, bound):
    return tl.maximum(x, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(x, bound):
    return tl.minimum(x, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def clip(x, low, high):
    return minimum(maximum(x, low), high)


@triton.jit
def where(condition, x, y):
    return tl.where(condition, x, y)


@triton.jit
def full_like(x, value):
    return tl.zeros_like(x) + value


@triton.jit
def fast_exp(x):
    return tl.exp2(1.4426950408889634 * x)


@triton.jit
def fast_sigmoid(x):
    return 1.0 / (1.0 + fast_exp(-x))


@triton.jit
def fast_expm1(x):
    series = x * (1.0 + x * (0.5 + x * (0.16666667 + x * 0.041666667)))
    return tl.where(tl.abs(x) < 0.1, series, fast_exp(x) - 1.0)


@triton.jit
def fast_log1p(x):
    series = x * (1.0 - x * (0.5 - x * (0.33333333 - x * 0.25)))
    return tl.where(tl.abs(x) < 0.05, series, tl.log(1.0 + x))


@triton.jit
def fast_erf(x):
    """1 - 2^p(|x|), p the polynomial nearest to log2(erfc) on [0, 4], weighted by erfc."""
    size = tl.abs(x)
    p = 4.45507006e-4 - 4.53585173e-5 * size
    p = -7.74632744e-4 + size * (-1.48943965e-3 + size * p)
    p = -0.148481616 + size * (2.82536836e-2 + size * p)
    p = size * (-1.62790859 + size * (-0.918416393 + size * p))
    magnitude = 1.0 - tl.exp2(p)
    return tl.where(x < 0, -magnitude, magnitude)


@triton.jit
def fast_tanh(x):
    size = tl.abs(x)
    far = 1.0 - 2.0 / (1.0 + fast_exp(2.0 * size))
    magnitude = tl.where(size < 0.05, size - 0.33333333 * size * size * size, far)
    return tl.where(x < 0, -magnitude, magnitude)


VOCABULARY = {
    function.__name__: function
    for function in (
        exp,
        expm1,
        log1p,
        erf,
        tanh,
        sigmoid,
        sin,
        cos,
        absolute,
        maximum,
        minimum,
        clip,
        where,
        full_like,
    )
}
FAST = VOCABULARY | {
    "exp": fast_exp,
    "expm1": fast_expm1,
    "log1p": fast_log1p,
    "erf": fast_erf,
    "tanh": fast_tanh,
    "sigmoid": fast_sigmoid,
}


FORMULA: Any = None  # in the two templates below; device_function gives them their values
P0: Any = None
P1: Any = None


def _with_one_parameter(x):
    return FORMULA(x, P0)


def _with_two_parameters(x):
    return FORMULA(x, P0, P1)


FORMULA_MODULE = "manualgrad.formula"  # whose functions VOCABULARY spells


@functools.lru_cache(maxsize=1024)
def device_function(formula, fast=False):
    """A formula as a Triton device function of one argument, from the same source text.

    formula: a plain function made of arithmetic, constants, the names in VOCABULARY and other such
    functions, or a functools.partial that binds all the float parameters of one. Constants are read
    once.
    fast: spelled with FAST, for float32 values that are rounded to 16 bits afterwards.

    Raises ValueError for a formula that is more than that, with what it is.
    """
    problem = untranslatable(formula)
    if problem:
        raise ValueError(f"manualgrad: no device function for {formula!r}: {problem}")
    if isinstance(formula, functools.partial):
        names = formula.func.__code__.co_varnames[1 : formula.func.__code__.co_argcount]
        values = {f"P{i}": float(formula.keywords[name]) for i, name in enumerate(names)}
        template = (_with_one_parameter, _with_two_parameters)[len(names) - 1]
        return _jit(template, {"FORMULA": device_function(formula.func, fast), **values})
    scope = {}
    for name in formula.__code__.co_names:
        value = formula.__globals__[name]
        if _is_vocabulary(value):
            value = (FAST if fast else VOCABULARY)[value.__name__]
        elif isinstance(value, types.FunctionType):
            value = device_function(value, fast)
        scope[name] = value
    return _jit(formula, scope)


@functools.lru_cache(maxsize=1024)
def untranslatable(formula) -> str | None:
    """Why a formula has no device function, or None. Its code is read; nothing is compiled."""
    if isinstance(formula, functools.partial):
        if len(formula.keywords) > 2:
            return f"it has {len(formula.keywords)} constants of its own, and two are the most"
        formula = formula.func
    if not isinstance(formula, types.FunctionType):
        return "it is no plain function"
    if formula.__code__.co_freevars:
        return f"it closes over {', '.join(formula.__code__.co_freevars)}; use global constants"
    for instruction in dis.get_instructions(formula):
        operation, name = instruction.opname, instruction.argval
        if operation in ("LOAD_ATTR", "LOAD_METHOD"):
            return f"it reads .{name}; import functions by name, from {FORMULA_MODULE}"
        if operation == "BINARY_OP" and "**" in instruction.argrepr:
            return "it uses **, which the device lacks; multiply"
        if "JUMP" in operation or operation == "FOR_ITER":
            return "it branches or loops; use where"
        if operation in ("LOAD_GLOBAL", "LOAD_NAME"):
            problem = _unreadable(name, formula.__globals__)
            if problem:
                return problem
    return None


def _unreadable(name: str, scope: dict[str, Any]) -> str | None:
    if name not in scope:
        return f"it calls {name}, which is not in {FORMULA_MODULE}"
    value = scope[name]
    if _is_vocabulary(value) or isinstance(value, (int, float)):
        return None
    if isinstance(value, types.FunctionType):
        problem = untranslatable(value)
        return problem and f"in {name}: {problem}"
    if isinstance(value, types.ModuleType):
        return f"it reaches into {name}; import functions by name, from {FORMULA_MODULE}"
    return f"it uses {name}, a {type(value).__name__}; constants are floats"


def _is_vocabulary(value: Any) -> bool:
    known = getattr(value, "__name__", None) in VOCABULARY
    return known and getattr(value, "__module__", None) == FORMULA_MODULE


def _jit(function, scope):
    """function, compiled for the device with other globals."""
    if not knobs.runtime.interpret:  # the compiler reads global numbers only as constexpr
        numbers = {k: tl.constexpr(v) for k, v in scope.items() if isinstance(v, (int, float))}
        scope = scope | numbers
    scope["tl"] = tl  # the interpreter looks for it in every function
    clone = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__)
    clone.__module__, clone.__qualname__ = function.__module__, function.__qualname__
    return triton.jit(clone)
