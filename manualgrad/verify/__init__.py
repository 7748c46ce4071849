"""Verification of any differentiable callable: eight judges, one report.

What they ask is in the modules beside this one, which are imported when a check is called for:
``import manualgrad`` costs nothing of it.
"""

import difflib
import math
from collections.abc import Iterable
from numbers import Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manualgrad.verify.report import CheckReport

KEYWORDS = ("reference", "params", "only", "atol", "rtol", "seed")
NEAR = 0.8  # difflib's similarity of a keyword misspelt


def check(
    fn: Any,
    *inputs: Any,
    reference: Any = None,
    params: Any = None,
    only: Any = None,
    atol: float = 0.0,
    rtol: float = 0.0,
    seed: int = 0,
    **unknown: Any,
) -> "CheckReport":
    """Hold the gradients of fn to every judge there is: ``print(mg.check(MyFunction, x, w))``.

    fn: a callable, a torch.nn.Module, or an autograd Function (its apply), whose results are
        tensors, or lists, tuples and dicts of them; or the name of a registered activation.
    inputs: its positional arguments: tensors, trees of tensors, or anything else, which stays as
        it is; keyword arguments go into functools.partial(fn, name=...). Those that require a
        gradient are differentiated by; if none does, all floating ones are. Their dtypes are judged
        as given, and fn once more in float64 if it takes that.
    reference: the same function in torch's own operations, which the judges "oracle" and "native"
        need. For a module a module, its parameters matched to fn's by name or in order, or a
        function of (*inputs, *parameters).
    params: for a module, which of its parameters (names or tensors) are differentiated by, all by
        default; for another callable, leaf tensors that it reads besides its arguments. While the
        check runs, those hold other values; do not use them in another thread.
    only: the judges to ask, by name; default all: "oracle", "symbolic", "native",
        "finite differences", "adjoint", "kernel", "dag", "conduct".
    atol, rtol: tolerated besides the rule of docs/checking.md, absolute and relative to the largest
        entry of what is compared. 0: the rule alone.
    seed: of everything random, fn's own draws included.

    Returns a CheckReport: prints as a table; ``.passed``, ``.findings``, ``.not_run``,
    ``.to_dataframe()``. What could not be asked is listed with its reason, never as passed; an
    exception out of fn is a finding. The caller's tensors, modules, generators, default dtype and
    modes are as before.

    Raises TypeError for an fn that is not callable, arguments that are no tensors and keywords that
    there are not, ValueError for unknown judges, nothing to differentiate by, or a reference that
    does not fit.
    """
    from manualgrad.verify.judges import chosen

    if unknown:
        raise TypeError(unknown_keywords(unknown))
    judges = chosen(only)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**62:
        raise ValueError(f"manualgrad.check: seed must be an int from 0 to 2^62 - 1, got {seed!r}")
    for name, value in (("atol", atol), ("rtol", rtol)):
        if not isinstance(value, Real):
            raise TypeError(f"manualgrad.check: {name} must be a number, got {value!r:.80}")
        if not 0.0 <= value < math.inf:
            raise ValueError(f"manualgrad.check: {name} must be finite and >= 0, got {value!r}")
    if isinstance(fn, str):
        return _activation(fn, inputs, judges)
    from manualgrad.verify.checking import Settings, examine

    return examine(fn, inputs, params, reference, Settings(judges, seed, atol, rtol))


def unknown_keywords(names: Iterable[str]) -> str:
    """What is wrong with keywords of these names, and the way out."""
    name = next(iter(names))
    near = difflib.get_close_matches(name, KEYWORDS, 1, NEAR)
    meant = (
        f"did you mean {near[0]!r}? It has {', '.join(KEYWORDS)}"
        if near
        else (f"it has {', '.join(KEYWORDS)}; fn's own go into functools.partial(fn, {name}=...)")
    )
    return f"manualgrad.check: there is no keyword {name!r}; {meant}"


def _activation(name: str, inputs: tuple, judges: tuple[str, ...]) -> "CheckReport":
    from manualgrad.activations import activation_of
    from manualgrad.verify.audit import of_activation

    if inputs:
        raise TypeError(
            f"manualgrad.check: {name!r} names an activation, whose cases bring their own inputs; "
            f"pass none"
        )
    return of_activation(activation_of(name, "check").name, judges)
