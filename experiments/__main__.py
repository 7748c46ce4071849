"""python -m experiments [NAME ...]: run experiments; each writes NAME.csv, NAME.md and NAME.png."""

import argparse
import pathlib
import sys
from concurrent.futures import BrokenExecutor
from dataclasses import replace

import torch

from experiments import batch, cost, report, share, skip, surface
from experiments.data import DataError
from experiments.pictures import picture
from experiments.records import Journal, RecordError, alone, as_csv, made_with, write_whole
from experiments.rendering import as_markdown, made, on_screen, sections
from experiments.runner import execute, in_order, runs_of, stop_workers
from experiments.study import BACKENDS, DTYPES, Experiment, Setting, part_name

EXPERIMENTS = {one.name: one for one in map(Experiment.of, (batch, skip, share, cost, surface))}
SEEDS = {"smoke": 1, "quick": 3, "full": 5}  # unless --seeds says how many
INTERRUPTED = 130  # as a shell says it of Ctrl-C


def main(arguments: list[str] | None = None) -> int:
    """0: all ran, and our gradients are autograd's; 1: not so; 2: bad command line or files."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not options.names:
        print(_listing())
        return 0
    try:
        chosen = [_chosen(name) for name in _expanded(options.names)]
        setting = _setting(options)
        seeds = _seeds(options)
        out = _directory(options.out)
        if "report" in options.names:
            return report.build(out, EXPERIMENTS)
        if setting.data == "mnist":
            setting.dataset()  # what is wrong with it is said now
        good = [_run(one, options, setting, seeds, out) for one in chosen]
    except (RecordError, DataError, OSError, ValueError) as error:
        print(f"python -m experiments: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenExecutor:
        stop_workers()
        print(
            f"python -m experiments: a worker process was killed (is memory short? fewer --jobs "
            f"need less); {_kept(options)}",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        stop_workers()
        print(f"\npython -m experiments: interrupted; {_kept(options)}", file=sys.stderr)
        return INTERRUPTED
    return 0 if all(good) else 1


def _directory(name: str) -> pathlib.Path:
    out = pathlib.Path(name)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "it is a file" if out.is_file() else error.strerror
        raise ValueError(f"--out {out} cannot be made: {why}; take another directory") from None
    return out


def _kept(options: argparse.Namespace) -> str:
    there = [str(file) for file in sorted(pathlib.Path(options.out).glob("*.partial.csv"))]
    if not there:
        return "no run was finished since the last file was written"
    return f"finished runs are in {', '.join(there)}, the same command goes on"


def _run(
    experiment: Experiment, options: argparse.Namespace, setting: Setting, seeds: int, out
) -> bool:
    """Run, print, write. Whether our gradients are autograd's."""
    with alone(_name(experiment), out):
        return _run_alone(experiment, options, setting, seeds, out)


def _run_alone(
    experiment: Experiment, options: argparse.Namespace, setting: Setting, seeds: int, out
) -> bool:
    name, budget = _name(experiment), options.budget
    runs = runs_of(experiment.parts, budget, setting, seeds)
    journal = Journal(out / f"{name}.partial.csv", made_with(budget, setting), options.fresh)
    for remark in journal.remarks:
        print(f"python -m experiments: {remark}", file=sys.stderr)
    there = sum(run.key in journal.done() for run in runs)
    if there:
        print(f"{name}: {there} of {len(runs)} runs are finished already", file=sys.stderr)
    execute(runs, journal, options.jobs, options.executor, name)
    rows = in_order(journal.rows, runs)
    rows.insert(0, "experiment", name)
    found = sections(experiment, rows)
    print(f"{name}: {experiment.about}\n{made(rows)}\n")
    for section in found:
        print(on_screen(section) + "\n", flush=True)
    files = {
        out / f"{name}.csv": as_csv(rows),
        out / f"{name}.md": as_markdown(experiment, rows, found).encode(),
        out / f"{name}.png": picture(experiment, rows),
    }
    write_whole(files)
    journal.discard()
    print(f"written: {', '.join(map(str, files))}\n", flush=True)
    return all(section.agrees for section in found)


def _name(experiment: Experiment) -> str:
    """batch, or batch.noise where it is a part alone."""
    whole = EXPERIMENTS[experiment.name]
    alone = experiment.parts != whole.parts
    return f"{experiment.name}.{part_name(experiment.parts[0])}" if alone else experiment.name


def _expanded(names: list[str]) -> list[str]:
    for word in ("all", "report"):
        if word in names and set(names) != {word}:
            raise ValueError(f"{word!r} stands alone; got {' '.join(names)}")
    if "report" in names:
        return []
    return list(EXPERIMENTS) if "all" in names else list(dict.fromkeys(names))


def _chosen(name: str) -> Experiment:
    head, _, rest = name.partition(".")
    experiment = EXPERIMENTS.get(head)
    parts = {part_name(part): part for part in experiment.parts} if experiment else {}
    if experiment is None or (rest and rest not in parts):
        known = ", ".join([*EXPERIMENTS, "all", "report"])
        if experiment is not None:
            known = ", ".join(f"{head}.{part}" for part in parts)
        raise ValueError(f"unknown experiment {name!r}; there are {known}")
    return replace(experiment, parts=(parts[rest],)) if rest else experiment


def _seeds(options: argparse.Namespace) -> int:
    if options.seeds is None:
        return SEEDS[options.budget]
    if options.seeds < 2 and options.budget != "smoke":
        raise ValueError(f"--seeds must be at least 2, an interval needs two; got {options.seeds}")
    if not 1 <= options.seeds <= 1000:
        raise ValueError(f"--seeds must be from 1 to 1000, got {options.seeds}")
    return options.seeds


def _setting(options: argparse.Namespace) -> Setting:
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"--device {device} cannot be used here: {first}") from None
    if options.data == "mnist" and options.data_dir is None:
        raise ValueError("--data mnist needs --data-dir DIR, where the IDX files are")
    if options.jobs == 0:
        raise ValueError("--jobs must be a number of processes, or -1 for all cores; got 0")
    return Setting(
        data=options.data,
        data_dir=options.data_dir,
        device=device,
        dtype=options.dtype,
        backend=options.backend,
    )


def _listing() -> str:
    lines = ["python -m experiments NAME [NAME ...], or all:", ""]
    for name, experiment in EXPERIMENTS.items():
        lines.append(f"  {name:10} {experiment.about}")
        lines.append(
            f"  {'':10} parts: {', '.join(f'{name}.{part_name(p)}' for p in experiment.parts)}"
        )
    return "\n".join([*lines, f"  {'report':10} {report.ABOUT}", "", "More: --help"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    add = parser.add_argument
    add(
        "names",
        nargs="*",
        metavar="NAME",
        help="experiments, NAME.PART, all, or report; none: list",
    )
    budget = parser.add_mutually_exclusive_group()
    for flag, text in (
        ("quick", "about a minute each (the default)"),
        ("full", "about ten minutes each"),
        ("smoke", "seconds each: does it run? it proves nothing"),
    ):
        budget.add_argument(f"--{flag}", dest="budget", action="store_const", const=flag, help=text)
    parser.set_defaults(budget="quick")
    add("--data", choices=["digits", "mnist"], default="digits")
    add("--data-dir", metavar="DIR", help="where MNIST's IDX files are, .gz or not")
    add("--seeds", type=int, metavar="N", help="seeds 0 to N-1; default 3, with --full 5")
    add("--device", default="auto", help="a torch device; auto: cuda where there is one")
    add(
        "--dtype",
        choices=list(DTYPES),
        default="float32",
        help="of parts that have none of their own",
    )
    add("--backend", choices=list(BACKENDS), default="manualgrad", help="who computes gradients")
    add("--jobs", type=int, default=-1, metavar="N", help="processes; default: one per core")
    add(
        "--executor",
        default="loky",
        help="a joblib backend: loky, or of a cluster, dask or ray (docs/experiments.md)",
    )
    add("--out", default="results", metavar="DIR", help="where files are written; default: results")
    add("--fresh", action="store_true", help="do not go on from an interrupted run's rows")
    return parser


if __name__ == "__main__":
    sys.exit(main())
