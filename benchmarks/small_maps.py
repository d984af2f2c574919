"""Convolutions of maps up to 2x2: XLA's against patches and matrix product.

python benchmarks/small_maps.py

Prints the time of a forward pass of the digits super-net both ways, measured in
turn in one run, and their ratio.
"""

import functools
import time

from hawis_jax import backend

backend.configure()

# ruff: noqa: E402
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax.arithmetic import binary
from hawis_jax.networks import net_variables
from hawis_jax.networks import resnet

_ROUNDS = 30


def _forward(small_map: int):
  """Returns a compiled forward pass; patches serve maps up to `small_map`."""
  module = resnet.cifar_resnet(
    8, (24,) * 3 + (48,) * 2 + (96,) * 2, 10, levels=8
  )
  variables = net_variables.init(module, jax.random.key(0), (8, 8, 1))
  bits = jnp.asarray(
    np.random.default_rng(0).integers(0, 2, (256, 8, 8, 8)), jnp.float32
  )
  default, binary._SMALL_MAP = binary._SMALL_MAP, small_map
  apply = jax.jit(functools.partial(module.apply, train=False))
  jax.block_until_ready(apply(variables, bits))  # traced with this setting
  binary._SMALL_MAP = default
  return lambda: jax.block_until_ready(apply(variables, bits))


def main() -> None:
  """Measures both in turn and prints the table."""
  passes = {"convolution": _forward(0), "patches": _forward(4)}
  seconds = {name: [] for name in passes}
  for _ in range(_ROUNDS):
    for name, run in passes.items():
      start = time.perf_counter()
      run()
      seconds[name].append(time.perf_counter() - start)
  for name, times in seconds.items():
    print(f"{name:12} {1e3 * np.median(times):7.2f} ms (256 images)")
  ratio = np.median(seconds["convolution"]) / np.median(seconds["patches"])
  print(f"ratio        {ratio:7.2f}")


if __name__ == "__main__":
  main()
