"""The elementary functions a formula may call, spelled for the device.

The only file that knows how Triton writes exp, erf or where. expm1, log1p and tanh do not exist
there; they are built so that they keep their digits near 0 (Kahan's quotients).
"""

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
def where(condition, x, y):
    return tl.where(condition, x, y)


@triton.jit
def full_like(x, value):
    return tl.zeros_like(x) + value


VOCABULARY = {
    function.__name__: function
    for function in (
        exp,
        expm1,
        log1p,
        erf,
        tanh,
        sin,
        cos,
        absolute,
        maximum,
        minimum,
        where,
        full_like,
    )
}


FORMULA: Any = None  # in the two templates below; device_function gives them their values
P0: Any = None
P1: Any = None


def _with_one_parameter(x):
    return FORMULA(x, P0)


def _with_two_parameters(x):
    return FORMULA(x, P0, P1)


@functools.lru_cache(maxsize=1024)
def device_function(formula):
    """A formula as a Triton device function of one argument, from the same source text.

    formula: a plain function made of arithmetic, float constants and the names in VOCABULARY, or a
    functools.partial that binds all the float parameters of one.
    """
    if isinstance(formula, functools.partial):
        names = formula.func.__code__.co_varnames[1 : formula.func.__code__.co_argcount]
        values = {f"P{i}": float(formula.keywords[name]) for i, name in enumerate(names)}
        template = (_with_one_parameter, _with_two_parameters)[len(names) - 1]
        return _jit(template, {"FORMULA": device_function(formula.func), **values})
    scope = formula.__globals__.items()
    return _jit(formula, {k: VOCABULARY.get(getattr(v, "__name__", ""), v) for k, v in scope})


def _jit(function, scope):
    """function, compiled for the device with other globals."""
    if not knobs.runtime.interpret:  # the compiler reads global floats only as constexpr
        scope = {k: tl.constexpr(v) if isinstance(v, float) else v for k, v in scope.items()}
    scope["tl"] = tl  # the interpreter looks for it in every function
    clone = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__)
    clone.__module__, clone.__qualname__ = function.__module__, function.__qualname__
    return triton.jit(clone)
