"""The command line: manualgrad check, manualgrad activations, manualgrad info."""

import argparse
import importlib
import os
import pathlib
import sys
from typing import Any

EPILOG = """\
TARGET is package.module:callable; the callable takes nothing and returns what manualgrad.check
takes: a tuple (fn, *inputs), with a dict of keywords such as {"reference": ...} last if there are
any. TARGET may also be the name of a registered activation. Without TARGET the library's own
operations, activations, losses and modules are audited.

Exit status: 0 nothing found, 1 at least one finding, 2 a bad command line or target.
"""
DTYPES = ("float64", "float32", "bfloat16", "float16")


class UsageError(Exception):
    """What the user typed cannot be done; the message is the one line to print."""


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    try:
        return given.run(given)
    except UsageError as error:
        print(f"manualgrad {given.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"manualgrad {given.command}: interrupted", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="manualgrad", description=(__doc__ or "").splitlines()[0])
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check = commands.add_parser(
        "check",
        help="hold a gradient, or the library's own, to eight judges",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("target", nargs="?", metavar="TARGET")
    check.add_argument("--only", nargs="+", metavar="JUDGE", help="these judges alone")
    check.add_argument("--dtype", choices=DTYPES, help="of the inputs, or of the cases audited")
    check.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu (default), cuda, ...")
    check.add_argument(
        "--json", metavar="FILE", help="write the report there too; - for the screen"
    )
    check.add_argument("--quick", action="store_true", help="audit the main cases only")
    check.add_argument(
        "--jobs", type=int, metavar="N", help="processes of an audit (default: cores)"
    )
    check.set_defaults(run=run_check)
    activations = commands.add_parser("activations", help="the registered activations")
    activations.set_defaults(run=run_activations)
    info = commands.add_parser("info", help="versions, devices, backends")
    info.set_defaults(run=run_info)
    return top


def run_check(given: argparse.Namespace) -> int:
    needs("tabulate")
    if given.json not in (None, "-"):
        folder = pathlib.Path(given.json).absolute().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise UsageError(f"--json: nothing can be written in {folder}")
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # so that the kernel judge can ask
    from manualgrad.verify.judges import chosen

    try:
        judges = chosen(given.only)
    except ValueError as error:
        raise UsageError(str(error).removeprefix("manualgrad.check: ")) from error
    device = usable(given.device)
    report = of_target(given, judges, device) if given.target else of_library(given, judges, device)
    if given.json == "-":
        import json

        print(json.dumps(report.to_json(), indent=1))
    else:
        print(report)
    if given.json not in (None, "-"):
        from manualgrad.files import write_json

        try:
            write_json(pathlib.Path(given.json), report.to_json())
        except OSError as error:
            raise UsageError(f"--json: {given.json} cannot be written ({error})") from error
    return 0 if report.passed else 1


def usable(device: str) -> str:
    """device, if torch can compute on it here."""
    import torch

    try:
        torch.zeros(1, device=device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {device}: {str(error).splitlines()[0]}") from error
    return device


def of_library(given: argparse.Namespace, judges: tuple[str, ...], device: str) -> Any:
    """The audit's report."""
    needs("tqdm")
    needs("joblib")
    import torch
    from tqdm import tqdm

    from manualgrad.verify.audit import audit, processes, rows
    from manualgrad.verify.report import CheckReport

    jobs = processes() if given.jobs is None else given.jobs
    if jobs < 1:
        raise UsageError(f"--jobs must be at least 1, got {jobs}")
    torch.set_num_threads(1)
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")  # when it is interrupted
    dtype = getattr(torch, given.dtype) if given.dtype else None
    cases = rows(given.quick, dtype)
    found = []
    done = audit(cases, judges, device, 1 if device != "cpu" else jobs)
    for outcomes in tqdm(
        done, total=len(cases), desc="audit", unit="case", leave=False, disable=None
    ):
        found += outcomes
    return CheckReport(f"manualgrad, {len(cases)} cases", found)


def of_target(given: argparse.Namespace, judges: tuple[str, ...], device: str) -> Any:
    """The report on what TARGET names."""
    from manualgrad.verify import KEYWORDS, check
    from manualgrad.verify.report import CheckReport

    if ":" not in given.target:
        from manualgrad.activations import activations

        if given.target not in activations():
            raise UsageError(
                f"{given.target!r} is neither package.module:callable nor an activation "
                f"({', '.join(activations())})"
            )
        return check(given.target, only=judges)
    module, _, name = given.target.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        made: Any = importlib.import_module(module)
        for part in name.split("."):
            made = getattr(made, part)
        made = made()
    except Exception as error:
        raise UsageError(f"{given.target}: {type(error).__name__}: {error}") from error
    if isinstance(made, CheckReport):
        return made
    if not isinstance(made, (tuple, list)) or not made:
        raise UsageError(f"{given.target} returned {made!r:.80}, not a tuple (fn, *inputs)")
    *positional, last = made
    keywords = last if isinstance(last, dict) and last and set(last) <= set(KEYWORDS) else {}
    if not keywords:
        positional = list(made)
    positional = [moved(value, given.dtype, device) for value in positional]
    if given.only or "only" not in keywords:
        keywords = {**keywords, "only": judges}
    try:
        return check(*positional, **keywords)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{given.target}: {error}") from error


def moved(value: Any, dtype: str | None, device: str) -> Any:
    """A tensor, or a copy of a module, in another dtype and on another device."""
    import copy

    import torch

    kind = getattr(torch, dtype) if dtype else None
    if isinstance(value, torch.Tensor):
        live = value.requires_grad
        value = value.detach().to(device)
        value = value.to(kind) if kind and value.is_floating_point() else value
        return value.requires_grad_() if live else value
    if isinstance(value, torch.nn.Module):
        return copy.deepcopy(value).to(device=device, dtype=kind)
    if isinstance(value, (list, tuple)):
        return type(value)(moved(v, dtype, device) for v in value)
    return value


def run_activations(given: argparse.Namespace) -> int:
    needs("tabulate")
    from manualgrad.activations import ACTIVATIONS
    from manualgrad.tables import table

    rows = [
        (name, act.sigma.__doc__, act.sigma_prime.__doc__, "-" if act.is_identity else act.keeps,
         ", ".join(f"{kink:g}" for kink in act.kinks))
        for name, act in sorted(ACTIVATIONS.items())
    ]  # fmt: skip
    print(table(rows, ("name", "sigma(z)", "sigma'", "keeps", "kinks")))
    return 0


def run_info(given: argparse.Namespace) -> int:
    import platform

    import torch

    from manualgrad import tuned
    from manualgrad._version import __version__
    from manualgrad.eligibility import missing_for_triton

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows = {
        "manualgrad": __version__,
        "torch": torch.__version__,
        "triton": tuned.triton_version(),
        "python": f"{platform.python_version()} on {platform.platform()}",
        "GPUs": ", ".join(gpus) or "none that torch sees",
        "Triton kernels": missing_for_triton() or "ready",
        "measured by tune": ", ".join(
            str(tuned.path(tuned.identity(i))) for i in range(len(gpus)) if tuned.choices(i)
        ) or "nothing yet",
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    for name, value in rows.items():
        print(f"{name:18}{value}")
    return 0


def needs(package: str) -> None:
    """Raise UsageError where a package of the extra [check] is missing."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise UsageError(f"{package} is not installed; pip install 'manualgrad[check]'") from error


if __name__ == "__main__":
    sys.exit(main())
