"""Run by test_device_formulas.py in processes of their own: triton is in one mode per process.

python device_formulas.py interpret    evaluates each formula in Triton's interpreter
python device_formulas.py compile      compiles each for a GPU that need not be here

Prints JSON: {activation: {formula: [the device's error, torch's], or "compiled"}}.
"""

import json
import os
import sys

MODE = sys.argv[1]
if MODE == "interpret":
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
else:
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch
import triton
import triton.language as tl
from manualgrad.triton_kernels.device_math import device_function
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from manualgrad.activations import ACTIVATIONS, activation_of

BLOCK = 256


@triton.jit
def evaluate(x_ptr, out_ptr, FORMULA: tl.constexpr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(out_ptr + i, FORMULA(tl.load(x_ptr + i)))


def points(dtype):
    """From far out to near 0, both signs, infinities and NaN; no kink is among them."""
    grid = torch.cat([torch.linspace(-12.03, 12.01, 200), torch.logspace(-12, 4, 21)]).to(dtype)
    special = torch.tensor([-1e4, -300.0, -1e-12, 300.0, torch.inf, -torch.inf, torch.nan])
    values = torch.cat([grid, special.to(dtype)])
    return torch.cat([values, values.new_full((BLOCK - len(values),), 0.37)])


def errors(formula, x, fast=False):
    """(the device's, torch's) largest error against float64, relative to max(1, |truth|)."""
    out = torch.empty_like(x)
    evaluate[(1,)](x, out, device_function(formula, fast), BLOCK)
    truth = formula(x.double())
    largest = []
    for values in (out.double(), formula(x).double()):
        same = (values == truth) | (values.isnan() & truth.isnan())
        gap = (values - truth).abs() / truth.abs().clamp(min=1.0)
        largest.append(float(torch.where(same, 0.0, gap).max()))
    return largest


def compiled(formula, fast=False):
    constants = {"FORMULA": device_function(formula, fast), "SIZE": BLOCK}
    signature = {"x_ptr": "*fp32", "out_ptr": "*fp32", **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(evaluate, signature, constants, {})
    return "compiled" if triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"] else ""


def main():
    records = dict(ACTIVATIONS)
    for module in (nn.LeakyReLU(0.3), nn.ELU(0.7), nn.Softplus(2.0, 10.0)):
        records[str(module)] = activation_of(module, "test")
    results = {}
    for name, act in records.items():
        formulas = {"sigma": act.sigma, "prime": act.sigma_prime, "second": act.sigma_second}
        results[name] = {}
        for key, formula in formulas.items():
            if MODE == "compile":
                results[name][key] = compiled(formula)
                results[name][f"{key}, fast"] = compiled(formula, fast=True)
                continue
            for dtype in (torch.float64, torch.float32):
                x = points(dtype)
                if key != "sigma" and act.keeps == "a":
                    x = act.sigma(x)
                results[name][f"{key} {dtype}"] = errors(formula, x)
            results[name][f"{key}, fast"] = errors(formula, x, fast=True)
    print(json.dumps(results))


main()
