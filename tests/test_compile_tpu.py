"""launch/compile_tpu.py: what it reads of programs; TPUs, with libtpu alone."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[1]
_TINY = {
  "data.levels": 4,
  "network.base_widths": "(8,8,16)",
  "space.choices": "((8,16),(8,16),(16,32))",
  "pretrain.batch_size": 32,
  "search.budget_uniform": 1.0,
  "search.methods": "('random',)",
  "search.proposals": 4,
  "train.nets": "('found','baseline_1x_int8','baseline_1x_float')",
  "robustness.scenarios": "({'stuck_off':(0.0,0.1)},{'variation':0.5})",
}

# Run by itself: the command's flags are a process's.
_KNOWN = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
sys.path.insert(0, "launch")
import compile_tpu
import jax, numpy as np
from jax.sharding import PartitionSpec as P

def local(x, w):
  ring = [(i, (i + 1) % 4) for i in range(4)]
  gathered = jax.lax.all_gather(w.astype(np.float16), "d")
  return jax.lax.psum(x @ w, "d"), gathered, jax.lax.ppermute(x, "d", ring)

mesh = jax.sharding.Mesh(jax.devices(), "d")
mapped = jax.shard_map(
  local, mesh=mesh, in_specs=(P(None, "d"), P("d")),
  out_specs=(P(), P(), P(None, "d")), check_vma=False,
)
x, w = np.ones((300, 400), np.float32), np.ones((400, 200), np.float32)
executable = jax.jit(mapped).lower(x, w).compile()
assert compile_tpu.collectives(executable.as_text()) == {
  "all-reduce": (1, 300 * 200 * 4),
  "all-gather": (1, 400 * 200 * 2),
  "collective-permute": (1, 300 * 100 * 4),
}
print(compile_tpu.row("name", executable))
"""


def _run(*command):
  """(Exit status, stdout, stderr) of a Python program; O0 is much faster."""
  result = subprocess.run(
    [sys.executable, *command],
    cwd=_ROOT,
    env=os.environ | {"PYTHONPATH": _ROOT, "JAX_OPTIMIZATION_LEVEL": "O0"},
    capture_output=True,
    text=True,
    timeout=900,
  )
  return result.returncode, result.stdout, result.stderr


def _compile(*arguments):
  fields = [f"--config.{name}={value}" for name, value in _TINY.items()]
  command = ["launch/compile_tpu.py", "--config=configs/digits.py", *fields]
  return _run(*command, *arguments)


def test_a_row_tells_what_a_known_program_takes_of_a_device():
  """MB, and GFLOP; each collective, by the bytes of its result."""
  status, output, error = _run("-c", _KNOWN)
  assert status == 0, error
  name, arguments, outputs, _, flops, moved, *_ = output.split()
  assert name == "name"
  assert float(arguments) == (300 * 100 + 100 * 200) * 4 / 1e6
  made = 300 * 200 * 4 + 400 * 200 * 2 + 300 * 100 * 4
  assert float(outputs) == pytest.approx(made / 1e6, rel=1e-3)
  assert float(flops) == pytest.approx(2 * 300 * 100 * 200 / 1e9, rel=0.02)
  assert float(moved) > float(arguments) + float(outputs)
  assert "1 all-reduce 0.240" in output


def test_mistakes_are_one_line():
  status, output, error = _compile("--stages=report")
  assert (status, output) == (2, "") and error.count("\n") == 1
  assert "<pretrain|search|train|robustness>" in error


@pytest.mark.tpu_compile
@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason='needs libtpu: pip install "jax[tpu]"',
)
def test_every_stage_compiles_for_a_tpu():
  status, output, error = _compile("--topology=v5e:2x4")
  assert status == 0, error
  lines = [re.split("  +", line) for line in output.splitlines()[2:]]
  rows = {name: [float(n) for n in numbers] for name, *numbers, _ in lines}
  parts = ("stuck_off", "variation")
  nets = ("found", "baseline_1x_int8")
  assert list(rows) == [
    "pretrain, step",
    "search, update",
    *(f"train, {net}" for net in (*nets, "baseline_1x_float")),
    *(
      f"robustness, {net}, {part}: {program}"
      for net in nets
      for part in parts
      for program in ("program", "evaluate")
    ),
  ]
  weights = 9 * (4 * 16 + 4 * 16 * 16 + 16 * 32 + 32 * 32)  # convolutions'
  reduced = re.search(r"all-reduce ([\d.]+)", output)[1]
  assert float(reduced) * 1e6 > 4 * weights
  assert all(arguments and flops for arguments, *_, flops, _ in rows.values())
  status, _, error = _compile("--topology=v5e:3x3")
  assert status == 2 and error.startswith("error: --topology=v5e:3x3: INVALID")
  # XLA itself says what a device can't hold.
  status, _, error = _compile(
    "--topology=v5e:2x2",
    "--stages=pretrain",
    f"--config.pretrain.batch_size={2**23}",
  )
  assert status == 2 and error.startswith("error: a device's memory is full")
