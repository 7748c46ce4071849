"""The command line: manualgrad check, manualgrad activations, manualgrad info."""

import argparse
import contextlib
import importlib
import os
import pathlib
import sys
from concurrent.futures import BrokenExecutor
from typing import Any

EPILOG = """\
TARGET is package.module:callable, imported from where it is installed or from the working
directory; the callable takes nothing and returns what manualgrad.check takes: a tuple
(fn, *inputs), with a dict of keywords such as {"reference": ...} last if there are any. TARGET may
also be the name of a registered activation. Without TARGET the library's own operations,
activations, losses and modules are audited. What a target prints goes to standard error.

Exit status: 0 something was asked and nothing found, 1 at least one finding, or nothing could be
asked, 2 a bad command line or target.
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
    check.add_argument("--device", metavar="DEVICE", help="cpu (an audit's default), cuda, ...")
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
    refuse_what_would_be_ignored(given)
    if given.json not in (None, "-"):
        file = pathlib.Path(given.json).absolute()
        if file.is_dir():
            raise UsageError(f"--json: {given.json} is a folder; name a file in it")
        if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
            raise UsageError(f"--json: nothing can be written in {file.parent}")
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # so that the kernel judge can ask
    from manualgrad.verify.judges import chosen

    try:
        judges = chosen(given.only)
    except ValueError as error:
        hint = f" (TARGET comes before --only, or after --: it took {given.only})"
        hint = hint if not given.target and len(given.only) > 1 else ""
        raise UsageError(str(error).removeprefix("manualgrad.check: ") + hint) from error
    usable(given.device or "cpu")
    report = of_target(given, judges) if given.target else of_library(given, judges)
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


def refuse_what_would_be_ignored(given: argparse.Namespace) -> None:
    if given.target and (given.quick or given.jobs is not None):
        raise UsageError("--quick and --jobs are of the audit; leave them out, or TARGET")
    if given.target and ":" not in given.target and (given.dtype or given.device):
        raise UsageError("--dtype and --device do not reach an activation's cases; leave them out")
    if given.jobs is not None and given.jobs < 1:
        raise UsageError(f"--jobs must be at least 1, got {given.jobs}")
    if given.jobs not in (None, 1) and given.device not in (None, "cpu"):
        raise UsageError(f"--jobs: an audit on {given.device} is one process; leave it out")


def usable(device: str) -> None:
    """Raise UsageError unless torch can compute on it here."""
    import torch

    try:
        torch.zeros(1, device=device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {device}: {str(error).splitlines()[0]}") from error


def of_library(given: argparse.Namespace, judges: tuple[str, ...]) -> Any:
    """The audit's report."""
    needs("tqdm")
    import torch
    from tqdm import tqdm

    from manualgrad.verify.audit import audit, processes, rows
    from manualgrad.verify.report import CheckReport

    jobs = processes() if given.jobs is None else given.jobs
    torch.set_num_threads(1)
    dtype = getattr(torch, given.dtype) if given.dtype else None
    device = given.device or "cpu"
    cases = rows(given.quick, dtype)
    found = []
    done = audit(cases, judges, device, 1 if device != "cpu" else jobs)
    try:
        for outcomes in tqdm(
            done, total=len(cases), desc="audit", unit="case", leave=False, disable=None
        ):
            found += outcomes
    except BrokenExecutor as error:
        why = "a worker process ended early; is memory short? fewer --jobs need less"
        raise UsageError(why) from error
    return CheckReport(f"manualgrad, {len(cases)} cases", found)


def of_target(given: argparse.Namespace, judges: tuple[str, ...]) -> Any:
    """The report on what TARGET names; what that prints does not mix with it."""
    from manualgrad.verify import check
    from manualgrad.verify.target import TargetError, report_on

    if ":" in given.target:
        only = judges if given.only else None
        try:
            with contextlib.redirect_stdout(sys.stderr):
                return report_on(given.target, only, given.dtype, given.device)
        except TargetError as error:
            raise UsageError(f"{given.target}: {error}") from error
    from manualgrad.activations import activations

    if given.target not in activations():
        raise UsageError(
            f"{given.target!r} is neither package.module:callable nor an activation "
            f"({', '.join(activations())})"
        )
    return check(given.target, only=judges)


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
