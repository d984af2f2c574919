"""Width vectors scored a second by the search's scorer.

python benchmarks/scoring.py [--vectors 32] [--chips 4] [--images 256]

The super-net of ResNet-8 on the digits with the default widths, and random
weights, scores random width vectors on the chips of an update, BN recalibration
included. For every scenario alone and for those of the default reward together,
also with statistics of each chip (search.batch_norm): vectors a second, median
of interleaved rounds; and the ratio to the same scenario with its chips'
weights in float32.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import measure
import numpy as np

from hawis_jax.config import settings
from hawis_jax.networks import net_variables
from hawis_jax.pipeline import candidates
from hawis_jax.search import reward

_ROUNDS = 3


def scoring_calls(experiment, vectors, chips):
  """Returns {case: call}, which scores some width vectors."""
  config, shape = experiment.config, experiment.splits.image_shape
  init = jax.jit(net_variables.init, static_argnums=(0, 2))
  net = init(experiment.supernet, jax.random.key(0), shape)
  scorer = candidates.make_scorer(experiment, net["params"])
  faults, variation = settings.search_devices(config)[:-1]
  # Severities of 1e-30 change nothing, and need weights in float32.
  dense = dataclasses.replace(faults, variation=1e-30)
  cases = {
    "stuck cells": [faults],
    "stuck cells, float32": [dense],
    "variation": [variation],
    "both": [faults, variation],
    "both, float32": [dense, variation],
  }
  ways = {(name, "fixed"): devices for name, devices in cases.items()}
  ways["both, statistics of each chip", "chip"] = cases["both"]
  calls = {}
  for (name, batch_norm), devices in ways.items():
    keys = reward.chip_keys(jax.random.key(1), chips, len(devices))
    score = reward.make_score(
      experiment.supernet,
      devices,
      config.search.vectors_per_step,
      batch_norm=batch_norm,
    )
    calls[name] = functools.partial(jax.jit(score), scorer, vectors, keys)
  return calls


def random_vectors(experiment, count):
  """Returns width vectors, int `[P, L]`."""
  rng, choices = np.random.default_rng(0), experiment.space.choices
  return jnp.array(
    [[rng.choice(layer) for layer in choices] for _ in range(count)]
  )


def main() -> None:
  """Prints a line for each case."""
  parser = measure.parser(__doc__)
  parser.add_argument("--vectors", type=int, default=32)
  parser.add_argument("--chips", type=int, default=4)
  parser.add_argument("--images", type=int, default=256)
  options = parser.parse_args()
  experiment = measure.prepare(
    None, network__depth=8, search__images=options.images
  )
  vectors = random_vectors(experiment, options.vectors)
  calls = scoring_calls(experiment, vectors, options.chips)
  rate = {
    name: options.vectors / time
    for name, time in measure.seconds(calls, _ROUNDS).items()
  }
  height, width, _ = experiment.splits.image_shape
  print(measure.machine())
  print(
    f"{options.vectors} vectors, {options.chips} chips a scenario, "
    f"{options.images} images of {height} x {width}"
  )
  for name, vectors_a_second in rate.items():
    ratio = ""
    if f"{name}, float32" in rate:
      times_faster = vectors_a_second / rate[f"{name}, float32"]
      ratio = f"{times_faster:6.2f} times float32"
    print(f"{name:30} {vectors_a_second:8.2f} vectors/s {ratio}")


if __name__ == "__main__":
  main()
