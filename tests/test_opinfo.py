"""PyTorch's own samples (OpInfo, ModuleInfo) before our judges: torch's choice of inputs, not ours.

torch.testing._internal is private. Where it cannot be imported, or torch is one that it was never
tried with, this module is skipped and says so.
"""

import copy
import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import manualgrad as mg

VERSION = tuple(int(n) for n in torch.__version__.split(".")[:2])
if not (2, 11) <= VERSION <= (2, 14):
    pytest.skip(
        f"torch's private sample inputs are tried with 2.11 to 2.14, this is {torch.__version__}",
        allow_module_level=True,
    )
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
        from torch.testing._internal.common_modules import module_db
except ImportError as error:
    pytest.skip(
        f"torch's private sample inputs cannot be imported: {error}", allow_module_level=True
    )

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, about its private parts
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
VALUES = ("oracle", "native")


def through_a_layer(act, z):
    """sigma(z) as a layer of one input, one output and the weight 1 computes it."""
    return mg.linear_act(z.unsqueeze(-1), z.new_ones(1, 1), None, act).squeeze(-1)


def after_a_layer(operation):
    """The same in torch: under autocast it is the layer that sets the dtype."""

    def native(z, **parameters):
        return operation(F.linear(z.unsqueeze(-1), z.new_ones(1, 1)).squeeze(-1), **parameters)

    return native


def activation(module):
    def ours(z, inplace=False, **parameters):
        return through_a_layer(module(**parameters), z)

    return ours


def gelu(z, approximate="none"):
    return through_a_layer(nn.GELU(approximate), z)


# an operation's name in op_db, ours
OPERATIONS = {
    "nn.functional.linear": mg.linear_act,
    "nn.functional.relu": activation(nn.ReLU),
    "nn.functional.relu6": activation(nn.ReLU6),
    "nn.functional.leaky_relu": activation(nn.LeakyReLU),
    "nn.functional.elu": activation(nn.ELU),
    "nn.functional.selu": activation(nn.SELU),
    "nn.functional.celu": activation(nn.CELU),
    "nn.functional.hardsigmoid": activation(nn.Hardsigmoid),
    "nn.functional.logsigmoid": activation(nn.LogSigmoid),
    "nn.functional.softplus": activation(nn.Softplus),
    "nn.functional.softsign": activation(nn.Softsign),
    "nn.functional.silu": activation(nn.SiLU),
    "nn.functional.mish": activation(nn.Mish),
    "nn.functional.hardswish": activation(nn.Hardswish),
    "nn.functional.gelu": gelu,
    "sigmoid": activation(nn.Sigmoid),
    "tanh": activation(nn.Tanh),
    "sin": lambda z: through_a_layer("sine", z),
    "nn.functional.mse_loss": mg.mse_loss,
    "nn.functional.cross_entropy": mg.cross_entropy,
    "nn.functional.binary_cross_entropy_with_logits": mg.binary_cross_entropy_with_logits,
}
LOSSES = ("mse_loss", "cross_entropy", "binary_cross_entropy_with_logits")
INFOS = {op.name: op for op in op_db if op.name in OPERATIONS and not op.variant_test_name}


def native(name):
    """torch's own; but its hardsigmoid takes 1/6 in float32 in its backward, also for float64."""
    operation = INFOS[name].op
    if name == "nn.functional.hardsigmoid":
        operation = lambda z, inplace=False: F.relu6(z + 3.0) / 6.0  # noqa: E731
    return operation if name.endswith(("linear", *LOSSES)) else after_a_layer(operation)


def samples(name, dtype):
    """(ours, torch's, inputs) for every sample that torch has of an operation."""
    for sample in INFOS[name].sample_inputs("cpu", dtype, requires_grad=True):
        tensors = {k: v for k, v in sample.kwargs.items() if isinstance(v, torch.Tensor)}
        others = {k: v for k, v in sample.kwargs.items() if k not in tensors}
        inputs = (sample.input, *sample.args, *(t.detach() for t in tensors.values()))
        how = (1 + len(sample.args), tuple(tensors), others)
        yield called(OPERATIONS[name], *how), called(native(name), *how), inputs


def called(rule, count, names, others):
    """rule on count positional tensors, then on those of these names."""

    def function(*inputs):
        named = dict(zip(names, inputs[count:], strict=True))
        return rule(*inputs[:count], **named, **others)

    return function


def test_torch_knows_every_operation_of_ours():
    assert set(INFOS) == set(OPERATIONS)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_sample_in_float64(name):
    count = 0
    for ours, theirs, inputs in samples(name, torch.float64):
        judges = VALUES  # of every sample; the slower ones of every fourth, and of every eighth
        if count % 4 == 0:
            judges = (*VALUES, "finite differences", "adjoint")
        if count % 8 == 0 and name.endswith(("linear", *LOSSES)):
            judges = None
        report = mg.check(ours, *inputs, reference=theirs, only=judges)
        assert report.passed, report
        count += 1
    assert count


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_sample_in_narrow_dtypes(name, dtype, exhaustive):
    """Every third in each dtype, another third in each."""
    found = list(samples(name, dtype))
    first, step = (0, 1) if exhaustive or len(found) < 3 else (DTYPES.index(dtype), 3)
    for ours, theirs, inputs in found[first::step]:
        report = mg.check(ours, *inputs, reference=theirs, only=VALUES)
        assert report.passed, report


# what the samples lack: batches that are transposed in memory, odd sizes, expanded inputs


@pytest.mark.parametrize("shape", [(3, 17, 31), (33, 7), (1, 1), (2, 3, 5, 7)], ids=str)
def test_shapes_and_layouts_that_the_samples_lack(shape):
    weight, bias = torch.randn(13, shape[-1]).double(), torch.randn(13).double()
    x = torch.randn(shape).double()
    crossed = x.transpose(0, 1).contiguous().transpose(0, 1)
    for variant in (crossed, x[:1].expand(shape), x.flip(0)[..., ::1]):
        report = mg.check(
            mg.linear_act, variant, weight, bias, reference=F.linear, only=("native", "conduct")
        )
        assert report.passed, report


MODULES = {
    "nn.Linear": None,
    "nn.MSELoss": lambda m, *given: mg.mse_loss(*given, m.reduction),
    "nn.BCEWithLogitsLoss": lambda m, *given: mg.binary_cross_entropy_with_logits(
        *given, m.weight, pos_weight=m.pos_weight, reduction=m.reduction
    ),
    "nn.CrossEntropyLoss": lambda m, *given: mg.cross_entropy(
        *given, m.weight, ignore_index=m.ignore_index, label_smoothing=m.label_smoothing, reduction=m.reduction
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_torchs_modules_and_ours(name):
    """Training and evaluation are one for these modules."""
    (info,) = [m for m in module_db if m.name == name]
    how = {"device": "cpu", "dtype": torch.float64, "requires_grad": True, "training": True}
    for sample in info.module_inputs_func(info, **how):
        made, given = sample.constructor_input, sample.forward_input
        if name == "nn.Linear":
            theirs = nn.Linear(*made.args, **made.kwargs, dtype=torch.float64)
            ours = mg.nn.Linear(*made.args, **made.kwargs, dtype=torch.float64)
            ours.load_state_dict(theirs.state_dict())
            theirs.load_state_dict(copy.deepcopy(ours).state_dict())
        else:
            theirs = info.module_cls(*made.args, **made.kwargs)
            ours = functools.partial(MODULES[name], theirs)
        inputs = (*given.args, *given.kwargs.values())
        report = mg.check(ours, *inputs, reference=theirs, only=(*VALUES, "adjoint"))
        assert report.passed or not theirs(*inputs).isfinite().all(), report
