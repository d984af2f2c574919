"""Width vectors costed a second: compiled and vectorised against plain NumPy.

python benchmarks/cost.py

All costs (arrays, MACs, energy, latency, interval, area) of a million random
width vectors of ResNet-20; the best of a few rounds.
"""

import time

from hawis_jax import backend

backend.configure()

# ruff: noqa: E402
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import cost

_VECTORS = 10**6
_ROUNDS = 7
_GEOMETRY = cost.cifar_geometry(20, (32, 32, 3), 32, 10, (64, 64))


def _costs(widths):
  return cost.network_cost(widths, _GEOMETRY)


def _seconds(call, rounds):
  best = float("inf")
  for _ in range(rounds):
    start = time.perf_counter()
    jax.block_until_ready(call())
    best = min(best, time.perf_counter() - start)
  return best


def main():
  vectors = np.random.default_rng(0).integers(8, 257, (_VECTORS, 19))
  compiled = jax.jit(jax.vmap(_costs))
  inputs = jnp.asarray(vectors, jnp.int32)
  jax.block_until_ready(compiled(inputs))
  fast = _VECTORS / _seconds(lambda: compiled(inputs), _ROUNDS)
  plain = _VECTORS / _seconds(lambda: _costs(vectors), 1)
  print(
    f"jax {jax.__version__}, {jax.devices()[0].device_kind}: {fast:.3g} "
    f"vectors a second, {fast / plain:.0f} times NumPy's {plain:.3g}"
  )


if __name__ == "__main__":
  main()
