"""IR drop: our batched solve against direct solves of all nodes, in one run.

python benchmarks/ir_drop.py

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

import os
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# ruff: noqa: E402
from hawis_jax import backend

backend.configure()

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from hawis_jax.crossbar import wires

_G_ON, _G_OFF = 3.33e-4, 3.33e-7
_WIRE, _LOAD = 1 / 0.0357, 1 / 0.25
_ROUNDS = 7
# (side, dtype, arrays a batch, of them also by sparse LU)
_CASES = (
  (16, "float32", 512, 8),
  (32, "float32", 128, 4),
  (64, "float32", 64, 3),
  (64, "float64", 64, 3),
  (128, "float32", 8, 1),
)
_DENSE_SIDE = 64


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


def _sparse(matrix, driven):
  return scipy.sparse.linalg.splu(matrix).solve(driven)


def _dense(matrix, driven):
  return np.linalg.solve(matrix.toarray(), driven)


def _seconds(run, *args):
  start = time.perf_counter()
  result = run(*args)
  jax.block_until_ready(result)
  return time.perf_counter() - start, result


def _measure(side, dtype, count, checked):
  """Returns seconds an array (ours, sparse), bytes an array, and the error."""
  rng = np.random.default_rng(0)
  shape = (count, side, side)
  g = np.where(rng.random(shape) < 0.5, _G_ON, _G_OFF)
  solve = jax.jit(wires.transfer)
  args = (jnp.asarray(g, dtype), _WIRE, _LOAD)
  memory = solve.lower(*args).compile().memory_analysis()
  got = np.asarray(solve(*args))[:checked]
  systems = [_nodal_system(x) for x in g[:checked]]
  ours, sparse = [], []
  for _ in range(_ROUNDS):
    ours.append(_seconds(solve, *args)[0] / count)
    timed = [_seconds(_sparse, *system) for system in systems]
    sparse.append(np.mean([seconds for seconds, _ in timed]))
  voltages = np.stack([x for _, x in timed])[:, -side:]
  exact = voltages.swapaxes(1, 2) / _LOAD
  error = np.abs(got - exact).max() / np.abs(exact).max()
  per_array = memory.temp_size_in_bytes / count
  return np.median(ours), np.median(sparse), per_array, error


def main() -> None:
  """Prints the table."""
  print(
    f"jax {jax.__version__}, {jax.devices()[0].device_kind}; wire "
    f"{_WIRE:.4g} ohm, load {_LOAD:.4g} ohm"
  )
  rng = np.random.default_rng(0)
  g = np.where(rng.random((_DENSE_SIDE,) * 2) < 0.5, _G_ON, _G_OFF)
  matrix, driven = _nodal_system(g)
  dense, _ = _seconds(_dense, matrix, driven)
  print(
    f"dense solve of {matrix.shape[0]} unknowns, {_DENSE_SIDE}x{_DENSE_SIDE}: "
    f"{dense:.2f} s, matrix {8 * matrix.shape[0] ** 2 / 1e6:.0f} MB"
  )
  print(
    f"{'array':>8} {'dtype':8} {'batch':>6} {'ours/ms':>9} {'MB/array':>9} "
    f"{'sparse LU/ms':>13} {'ratio':>7} {'dense / ours':>13} {'error':>8}"
  )
  for side, dtype, count, checked in _CASES:
    with jax.enable_x64(dtype == "float64"):
      ours, sparse, memory, error = _measure(side, dtype, count, checked)
    against_dense = f"{dense / ours:.0f}" if side == _DENSE_SIDE else "-"
    print(
      f"{side:4}x{side:<3} {dtype:8} {count:6} {1e3 * ours:9.3f} "
      f"{memory / 1e6:9.3f} {1e3 * sparse:13.2f} {sparse / ours:7.1f} "
      f"{against_dense:>13} {error:8.1e}",
      flush=True,
    )


if __name__ == "__main__":
  main()
