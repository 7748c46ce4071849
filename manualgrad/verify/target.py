"""What TARGET names on a command line, as mg.check takes it."""

import difflib
import importlib
import os
import sys
from typing import Any

import torch
from torch import Tensor, nn

from manualgrad.verify import KEYWORDS, NEAR, check, unknown_keywords
from manualgrad.verify.callee import changed
from manualgrad.verify.reach import reached
from manualgrad.verify.report import CheckReport


class TargetError(Exception):
    """TARGET cannot be checked; the message says why."""


def report_on(
    target: str, only: tuple[str, ...] | None, dtype: str | None, device: str | None
) -> CheckReport:
    """The report on package.module:callable."""
    made = called(target)
    if isinstance(made, CheckReport):
        if only or dtype or device:
            raise TargetError("it returned a report, too late for --only, --dtype and --device")
        return made
    fn, inputs, keywords = parts(made)
    if only:
        keywords = {**keywords, "only": only}
    if dtype or device:
        try:
            inputs = moved(fn, inputs, keywords, getattr(torch, dtype) if dtype else None, device)
        except RuntimeError as error:
            raise TargetError(f"--dtype and --device: {error}") from error
    try:
        return check(fn, *inputs, **keywords)
    except (TypeError, ValueError) as error:
        raise TargetError(str(error).removeprefix("manualgrad.check: ")) from error


def called(target: str) -> Any:
    """What the callable returns; it is looked for in the working directory too."""
    module, _, name = target.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        made: Any = importlib.import_module(module)
        for part in name.split("."):
            made = getattr(made, part)
        return made()
    except (Exception, SystemExit) as error:
        raise TargetError(f"{type(error).__name__}: {error}") from error


def parts(made: Any) -> tuple[Any, list[Any], dict[str, Any]]:
    """fn, its inputs, and mg.check's keywords, which a dict at the end may hold."""
    given = list(made) if isinstance(made, (tuple, list)) else []
    keywords: dict[str, Any] = {}
    if given and isinstance(given[-1], dict) and given[-1]:
        unknown = [key for key in given[-1] if key not in KEYWORDS]
        if not unknown:
            keywords = given.pop()
        near = [key for key in unknown if difflib.get_close_matches(str(key), KEYWORDS, 1, NEAR)]
        if near or 0 < len(unknown) < len(given[-1]):
            wrong = unknown_keywords(map(str, near or unknown))
            raise TargetError(
                f"{wrong.removeprefix('manualgrad.check: ')}. If the dict is an input of fn, put "
                f"one of keywords after it, such as {{'seed': 0}}"
            )
    if not given:
        raise TargetError(f"it returned {made!r:.80}, not a tuple (fn, *inputs)")
    return given[0], given[1:], keywords


def moved(
    fn: Any, inputs: list[Any], keywords: dict[str, Any], dtype: Any, device: str | None
) -> list[Any]:
    """The inputs in another dtype and on another device, as copies.

    The modules that fn, its inputs and its reference reach, and the tensors in params, are moved in
    place: fn reads these and no others. Raises TargetError for what neither reaches.
    """

    def aim(tensor: Tensor) -> Any:
        if dtype and tensor.is_complex():
            raise TargetError(f"--dtype {dtype} is none for a tensor of {tensor.dtype}")
        return dtype if dtype and tensor.is_floating_point() else tensor.dtype

    def of(tensor: Tensor) -> Tensor:
        return tensor.to(device=device, dtype=aim(tensor))

    def copied(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return of(leaf.detach()).requires_grad_(leaf.requires_grad)

    if isinstance(fn, str):
        raise TargetError(f"--dtype and --device do not reach the cases of activation {fn!r}")
    roots = fn, keywords.get("reference"), keywords.get("params"), inputs
    for module in reached(roots, nn.Module):
        for tensor in (*module.parameters(), *module.buffers()):
            aim(tensor)  # Module.to would drop an imaginary part
        module.to(device=device, dtype=dtype)
    for tensor in reached(keywords.get("params"), Tensor):
        tensor.data = of(tensor.data)
    for tensor in reached(roots[:2], Tensor):
        elsewhere = device is not None and tensor.device.type != torch.device(device).type
        if tensor.is_leaf and (elsewhere or aim(tensor) != tensor.dtype) and tensor.dim():
            raise TargetError(
                f"--dtype and --device do not reach a tensor of shape {tuple(tensor.shape)} that "
                f"fn or its reference reads besides its arguments; name it in params"
            )
    return [changed(tree, copied) for tree in inputs]
