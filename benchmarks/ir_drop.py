"""IR drop: our batched solve against direct solves of all nodes, in one run.

python benchmarks/ir_drop.py [--cases 0 1 ...] [--rounds 7] [--no-dense]

Time an array and temporary memory of `crossbar.wires.transfer`, float32 unless
told, jitted, on batches of random binary arrays (published conductances and
wires, 28 ohm a cell, 4 ohm load): the median of rounds in turn. Memory is what
XLA reserves for the batch, over its arrays.

The same transfer matrices by the 2 R C nodal equations, in float64: sparse LU
(SciPy's SuperLU, factorisation and all R inputs in one call; without the
assembly of the matrix) and, at 64x64 once, a dense solve (NumPy, all 64 inputs
in one call). Their BLAS has one thread, ours both cores: with two, SuperLU's
many small calls are slower on a busy machine and hardly faster on an idle one;
the dense solve would gain up to twofold. "error" is our largest difference from
sparse LU over the largest current, of the batch's first arrays.
"""

import argparse
import functools
import math
import time

import jax
import jax.numpy as jnp
import measure
import numpy as np
import scipy.sparse.linalg
import threadpoolctl

from hawis_jax.crossbar import wires
from hawis_jax.runtime import device_memory

_G_ON, _G_OFF = 3.33e-4, 3.33e-7
_WIRE, _LOAD = 1 / 0.0357, 1 / 0.25
# (side, dtype, arrays a batch, of them also by sparse LU)
_CASES = (
  (16, "float32", 512, 8),
  (32, "float32", 128, 4),
  (64, "float32", 64, 3),
  (64, "float64", 64, 3),
  (128, "float32", 8, 1),
)
_DENSE_SIDE = 64


def random_arrays(*shape):
  """Returns conductances of random binary arrays [S]."""
  bits = np.random.default_rng(0).random(shape) < 0.5
  return np.where(bits, _G_ON, _G_OFF)


def _nodal_system(g):
  """Returns the matrix and right-hand sides of one array."""
  rows, columns = g.shape
  word = np.arange(g.size).reshape(g.shape)
  bit = word + g.size
  ports = np.concatenate([word[:, 0], bit[-1]])
  resistors = (
    (word, bit, g),
    (word[:, :-1], word[:, 1:], np.full((rows, columns - 1), 1 / _WIRE)),
    (bit[:-1], bit[1:], np.full((rows - 1, columns), 1 / _WIRE)),
  )
  entries = [(ports, ports, np.full(ports.shape, 1 / _LOAD))]
  for a, b, conductance in resistors:
    entries += [(a, a, conductance), (b, b, conductance)]
    entries += [(a, b, -conductance), (b, a, -conductance)]
  i, j, values = (
    np.concatenate([x.ravel() for x in column])
    for column in zip(*entries, strict=True)
  )
  driven = np.zeros((2 * g.size, rows))
  driven[word[:, 0], np.arange(rows)] = 1 / _LOAD
  return scipy.sparse.csc_array((values, (i, j))), driven


def _sparse(systems):
  return [scipy.sparse.linalg.splu(a).solve(b) for a, b in systems]


def solving(g, dtype="float32"):
  """Returns a call that solves all arrays of `g`."""
  args = jnp.asarray(g, dtype), _WIRE, _LOAD
  return functools.partial(jax.jit(wires.transfer), *args)


def _measure(side, dtype, count, checked, rounds):
  """Returns seconds an array (ours, sparse), bytes an array, and the error."""
  g = random_arrays(count, side, side)
  systems = [_nodal_system(x) for x in g[:checked]]
  solve = solving(g, dtype)
  compiled = solve.func.lower(*solve.args).compile()
  memory = device_memory.needs(compiled).temporary / count
  calls = {"ours": solve}
  calls["sparse"] = functools.partial(_sparse, systems)
  times = measure.seconds(calls, rounds)
  got = np.asarray(solve())[:checked]
  exact = np.stack(_sparse(systems))[:, -side:].swapaxes(1, 2) / _LOAD
  error = np.abs(got - exact).max() / np.abs(exact).max()
  return times["ours"] / count, times["sparse"] / checked, memory, error


def _dense():
  """Seconds of a dense solve."""
  matrix, driven = _nodal_system(random_arrays(_DENSE_SIDE, _DENSE_SIDE))
  matrix = matrix.toarray()
  start = time.perf_counter()
  np.linalg.solve(matrix, driven)
  seconds = time.perf_counter() - start
  print(
    f"dense solve of {len(matrix)} unknowns, {_DENSE_SIDE}x{_DENSE_SIDE}: "
    f"{seconds:.2f} s, matrix {matrix.nbytes / 1e6:.0f} MB"
  )
  return seconds


def main() -> None:
  """Prints the table."""
  parser = measure.parser(__doc__)
  every = range(len(_CASES))
  parser.add_argument("--cases", type=int, nargs="+", default=every)
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument(
    "--dense",
    action=argparse.BooleanOptionalAction,
    default=True,
    help="takes 1 GB",
  )
  options = parser.parse_args()
  print(f"{measure.machine()}; wire {_WIRE:.4g} ohm, load {_LOAD:.4g} ohm")
  with threadpoolctl.threadpool_limits(1, "blas"):
    dense = _dense() if options.dense else math.nan
    print(
      f"{'array':>8} {'dtype':8} {'batch':>6} {'ours/ms':>9} {'MB/array':>9} "
      f"{'sparse LU/ms':>13} {'ratio':>7} {'dense / ours':>13} {'error':>8}"
    )
    for side, dtype, *counts in [_CASES[index] for index in options.cases]:
      with jax.enable_x64(dtype == "float64"):
        ours, sparse, memory, error = _measure(
          side, dtype, *counts, options.rounds
        )
      against_dense = dense / ours if side == _DENSE_SIDE else math.nan
      print(
        f"{side:4}x{side:<3} {dtype:8} {counts[0]:6} {1e3 * ours:9.3f} "
        f"{memory / 1e6:9.3f} {1e3 * sparse:13.2f} {sparse / ours:7.1f} "
        f"{against_dense:13.0f} {error:8.1e}",
        flush=True,
      )


if __name__ == "__main__":
  main()
