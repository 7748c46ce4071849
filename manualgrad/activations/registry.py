"""The record of an activation: sigma, sigma', sigma'' and what backward must keep for them."""

import functools
import inspect
import marshal
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, eq=False)
class Activation:
    """An elementwise activation with its first two derivatives.

    sigma:        a = sigma(z)
    sigma_prime:  sigma'(z), written in z or in a; the parameter's name says which
    sigma_second: sigma''(z), written in the same tensor as sigma_prime
    oracle:       an independent implementation of sigma: it judges ours, and stands in for it where
                  PyTorch cannot differentiate a Function (manualgrad.composite)
    kinks:        points where sigma' or sigma'' jumps; finite differences step around them
    parameters:   (name, value) pairs that differ from torch's defaults, bound into all four
    keeps:        'z' or 'a', the tensor that sigma_prime is a function of
    is_identity:  sigma(z) = z, so there is nothing to keep and nothing to multiply by
    hides_z:      a Function returns z, hidden, next to a, because sigma' is written in it
    text:         the name and the constants, in every digit; activation_of reads it back
    digest:       of the formulas' code: another after every change of theirs
    """

    name: str
    sigma: Callable[[Any], Any]
    sigma_prime: Callable[[Any], Any]
    sigma_second: Callable[[Any], Any]
    oracle: Callable[[Any], Any]
    kinks: tuple[float, ...] = ()
    parameters: tuple[tuple[str, float], ...] = ()

    keeps: str = field(init=False)
    is_identity: bool = field(init=False)
    hides_z: bool = field(init=False)
    text: str = field(init=False)
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        keeps = next(iter(inspect.signature(self.sigma_prime).parameters))
        identity = self.name == "identity"
        object.__setattr__(self, "keeps", keeps)
        object.__setattr__(self, "is_identity", identity)
        object.__setattr__(self, "hides_z", keeps == "z" and not identity)
        constants = ", ".join(f"{name}={value!r}" for name, value in self.parameters)
        object.__setattr__(self, "text", f"{self.name}({constants})" if constants else self.name)
        code = marshal.dumps([_code(f) for f in (self.sigma, self.sigma_prime, self.sigma_second)])
        object.__setattr__(self, "digest", f"{zlib.crc32(code):08x}")

    @functools.lru_cache(maxsize=256)  # noqa: B019  records live as long as the process
    def with_parameters(self, *parameters: tuple[str, float]) -> "Activation":
        """The same activation with other constants, e.g. ("negative_slope", 0.1)."""
        bound = dict(parameters)
        return replace(
            self,
            sigma=functools.partial(self.sigma, **bound),
            sigma_prime=functools.partial(self.sigma_prime, **bound),
            sigma_second=functools.partial(self.sigma_second, **bound),
            oracle=functools.partial(self.oracle, **bound),
            parameters=parameters,
        )

    def __str__(self) -> str:
        return self.text

    def __reduce__(self):
        return recall, (self.name, self.parameters)


def _code(formula: Any) -> tuple:
    code = getattr(formula, "func", formula).__code__  # of a partial, with constants: what it binds
    return code.co_code, code.co_consts, code.co_names


ACTIVATIONS: dict[str, Activation] = {}

# common spellings, in lower case, of names that torch.nn.functional spells otherwise
ALIASES = {
    "none": "identity",
    "linear": "identity",
    "relu2": "relu_squared",
    "relu_sq": "relu_squared",
    "sqrelu": "relu_squared",
    "squared_relu": "relu_squared",
    "leakyrelu": "leaky_relu",
    "hard_sigmoid": "hardsigmoid",
    "logsigmoid": "log_sigmoid",
    "swish": "silu",
    "hard_swish": "hardswish",
    "gelu_erf": "gelu",
    "gelu_approx": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_tanh_approx": "gelu_tanh",
    "quickgelu": "quick_gelu",
    "sin": "sine",
}


def recall(name: str, parameters: tuple[tuple[str, float], ...] = ()) -> Activation:
    """The registered record: what a pickle or a deep copy of an Activation turns into."""
    if name not in ACTIVATIONS:
        raise ValueError(
            f"activation {name!r} is not registered in this process; "
            f"call manualgrad.register_activation before loading what was saved with it"
        )
    act = ACTIVATIONS[name]
    return act.with_parameters(*parameters) if parameters else act


def register(
    sigma: Callable[[Any], Any],
    sigma_prime: Callable[[Any], Any],
    sigma_second: Callable[[Any], Any],
    *,
    oracle: Callable[[Any], Any],
    kinks: tuple[float, ...] = (),
) -> None:
    """Add an activation under sigma's own name (public name: register_activation).

    Write the three formulas with the functions of ``manualgrad.formula``, so that SymPy and
    Triton can read them too. The first parameter of sigma_prime and of sigma_second is named
    ``z`` if the formula is in the pre-activation, ``a`` if it is in the output: it declares which
    tensor backward keeps. sigma's is always ``z``. Further parameters are float constants with
    defaults, the same in all three.

    oracle: an independent implementation of sigma, e.g. torch's own, which judges ours, and is
        differentiated in its place inside a jvp of a jvp or a compiled torch.func transform.
    kinks: points where sigma' or sigma'' jumps.

    Raises TypeError for a formula that is not a function of z or a, ValueError for a taken name.
    """
    call = "manualgrad.register_activation"
    formulas = {"sigma": sigma, "sigma_prime": sigma_prime, "sigma_second": sigma_second}
    kept = {role: _first_parameter(call, role, formula) for role, formula in formulas.items()}
    if kept["sigma_prime"] != kept["sigma_second"]:
        raise TypeError(
            f"{call}: sigma_prime is written in {kept['sigma_prime']!r} but sigma_second in "
            f"{kept['sigma_second']!r}; write both in the same tensor, the one that backward keeps"
        )
    constants = [list(inspect.signature(f).parameters.values())[1:] for f in formulas.values()]
    if any(c != constants[0] for c in constants) or any(p.default is p.empty for p in constants[0]):
        raise TypeError(
            f"{call}: after their first parameter the three formulas take {constants}; give all "
            f"three the same float constants, with defaults"
        )
    if not callable(oracle):
        raise TypeError(f"{call}: oracle must be callable, got {oracle!r}")
    if isinstance(kinks, str) or not isinstance(kinks, Iterable):
        raise TypeError(f"{call}: kinks must be a tuple of floats, got {kinks!r}")
    name = sigma.__name__
    if not name.isidentifier():
        raise ValueError(f"{call}: {name!r} is no name; define sigma with def")
    if name in ACTIVATIONS or name in ALIASES:
        raise ValueError(f"{call}: {name!r} is already registered; rename the function")
    points = tuple(float(kink) for kink in kinks)
    ACTIVATIONS[name] = Activation(name, sigma, sigma_prime, sigma_second, oracle, points)


def _first_parameter(call: str, role: str, formula: Any) -> str | None:
    if not inspect.isfunction(formula):
        raise TypeError(f"{call}: {role} must be a plain function, got {formula!r}")
    allowed = ("z",) if role == "sigma" else ("z", "a")
    first = next(iter(inspect.signature(formula).parameters), None)
    if first not in allowed:
        raise TypeError(
            f"{call}: the first parameter of {role} is {first!r}; name it "
            f"{' or '.join(map(repr, allowed))}, which says what tensor it is a function of"
        )
    return first
