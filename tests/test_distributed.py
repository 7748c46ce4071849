"""Under torch's engines for several processes, gradients and training are those of one process."""

import os
import pathlib
import re
import runpy
import signal
import subprocess
import sys

import pytest
import torch.distributed
from filelock import FileLock

SCRIPT = pathlib.Path(__file__).parent / "distributed" / "train.py"
SECONDS = 240  # it takes 20 alone on two cores

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="this torch has no gloo",
    ),
]

# the nodes of ours in each scenario's graph; a chain whose layers have hooks is no node
NODES = {
    "ddp": "2 chains, 1 layers",
    "ddp_static_graph": "2 chains, 1 layers",
    "ddp_no_sync": "4 chains, 2 layers",
    "ddp_compiled": "0 chains, 0 layers",
    "ddp_compiled_wide": "0 chains, 0 layers",
    "fsdp2_layers": "0 chains, 6 layers",
    "fsdp2_chains": "2 chains, 1 layers",
    "fsdp2_whole": "1 chains, 0 layers",
    "fsdp2_recompute": "1 chains, 0 layers",
    "fsdp2_group": "0 chains, 3 layers",
    "fsdp2_compiled": "0 chains, 0 layers",
    "fsdp2_bf16": "2 chains, 1 layers",
    "fsdp2_bf16_layers": "0 chains, 6 layers",
    "fsdp2_checkpointed": "2 chains, 1 layers",
    "tensor_parallel": "0 chains, 2 layers",
    "tensor_parallel_compiled": "0 chains, 0 layers",
    "tensor_parallel_mlp": "0 chains, 3 layers",
    "dtensor_data": "0 chains, 1 layers",
    "dtensor_columns": "0 chains, 1 layers",
    "dtensor_rows": "0 chains, 1 layers",
    "dtensor_rows_z": "0 chains, 1 layers",
    "dtensor_chain": "1 chains, 0 layers",
    "dtensor_chain_compiled": "0 chains, 0 layers",
    "dtensor_second_order": "1 chains, 0 layers",
}


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """What the script prints, run once however many workers these tests are spread over."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # the workers' common one
    kept = folder / "distributed.txt"
    with FileLock(f"{kept}.lock"):
        if not kept.exists():
            kept.write_text(run())
    return kept.read_text()


def run():
    """The script with two processes, at a free port; what it prints, and why it was ended."""
    launcher = ["torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    process = subprocess.Popen(
        [sys.executable, "-m", *launcher, "--nproc-per-node=2", str(SCRIPT)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    try:
        return process.communicate(timeout=SECONDS)[0] + f"exit status {process.returncode}\n"
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # upon which torchrun ends its two processes
        return process.communicate()[0] + f"ended after {SECONDS} s\n"


@pytest.mark.parametrize("name", NODES)
def test_trains_as_one_process_does(output, name):
    line = re.search(rf"^(ok|FAILED) +{name} +\S+ <= \S+ +(.*)$", output, re.M)
    assert line is not None, output
    assert line[1] == "ok", output
    assert line[2] == NODES[name]


def test_every_scenario_was_asked(output):
    assert re.findall(r"^(?:ok|FAILED) +(\w+)", output, re.M) == list(NODES)
    assert output.endswith("exit status 0\n"), output


def test_an_unknown_scenario_ends_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "dpp"])
    monkeypatch.setattr(sys, "path", [str(SCRIPT.parent), *sys.path])
    with pytest.raises(SystemExit, match="no scenario dpp; there are ddp, "):
        runpy.run_path(str(SCRIPT), run_name="__main__")
