"""Kernel: does another device agree?"""

from collections.abc import Iterator

import torch

from manualgrad.verify.judges import NotRun, first_line, question
from manualgrad.verify.native import against_truth, truth_and_limits
from manualgrad.verify.readings import Reading
from manualgrad.verify.subject import Run, Subject


@question("kernel", "GPU against CPU")
def gpu_against_cpu(subject: Subject) -> Iterator[Reading]:
    """The same function on the other kind of device; the truth is the CPU's in float64."""
    if not torch.cuda.is_available():
        raise NotRun("there is no GPU here")
    try:
        runs = {kind: subject.run([t.to(kind) for t in subject.given]) for kind in ("cpu", "cuda")}
    except Exception as error:
        raise NotRun(f"fn does not run on both devices: {first_line(error)}") from error
    cpu, gpu = runs["cpu"], _on_cpu(runs["cuda"])
    on_cpu = [t.cpu() for t in subject.given]
    for part in ("outputs", "gradients"):
        truth, limits = truth_and_limits(subject, on_cpu, cpu, part, subject.callee)
        names = [f"{part[:-1]} {k}" for k in range(len(truth))]
        columns = (getattr(gpu, part), getattr(cpu, part), truth, limits)
        for name, mine, native, right, limit in zip(names, *columns, strict=True):
            yield against_truth(f"{name} on the GPU", mine, native, right, limit)


def _on_cpu(run: Run) -> Run:
    gradients = [None if g is None else g.cpu() for g in run.gradients]
    return Run([o.cpu() for o in run.outputs], gradients, run.wrt)


@question("symbolic", "SymPy's derivatives")
def symbolic(subject: Subject) -> Iterator[Reading]:
    raise NotRun("fn is no registered activation, so there is no formula to read")
    yield
