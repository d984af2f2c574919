"""Width vectors scored a second by the search's scorer.

python benchmarks/scoring.py [--vectors 32] [--chips 4] [--images 256]

The super-net of configs/digits.py, with random weights, scores random width
vectors on the chips of an update, BN recalibration included. For every scenario
alone and for those of the default reward together: vectors a second, median of
interleaved rounds; and the ratio to the same scenario with its chips' weights
in float32.
"""

import argparse
import dataclasses
import time

from hawis_jax import backend
from hawis_jax.pipeline import candidates
from hawis_jax.search import reward

backend.configure()

# ruff: noqa: E402
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax.config import settings
from hawis_jax.networks import net_variables
from hawis_jax.pipeline.experiment import prepare

_ROUNDS = 3


def _experiment(images):
  config = settings.default()
  config.network.depth = 8
  config.search.images = images
  settings.validate(config)
  return prepare(config)


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--vectors", type=int, default=32)
  parser.add_argument("--chips", type=int, default=4)
  parser.add_argument("--images", type=int, default=256)
  options = parser.parse_args()
  experiment = _experiment(options.images)
  shape = experiment.splits.image_shape
  net = net_variables.init(experiment.supernet, jax.random.key(0), shape)
  scorer = candidates.make_scorer(experiment, net["params"])
  table = np.random.default_rng(0)
  vectors = jnp.array(
    [
      [table.choice(layer) for layer in experiment.space.choices]
      for _ in range(options.vectors)
    ]
  )
  faults, variation = settings.search_devices(experiment.config)[:-1]
  # Levels of 1e-30 change nothing, and need weights in float32.
  dense = dataclasses.replace(faults, variation=1e-30)
  cases = {
    "stuck cells": [faults],
    "stuck cells, float32": [dense],
    "variation": [variation],
    "both": [faults, variation],
    "both, float32": [dense, variation],
  }
  calls = {}
  for name, devices in cases.items():
    keys = reward.chip_keys(jax.random.key(1), options.chips, len(devices))
    score = jax.jit(reward.make_score(experiment, devices))
    calls[name] = lambda score=score, keys=keys: score(scorer, vectors, keys)
    jax.block_until_ready(calls[name]())
  times = {name: [] for name in calls}
  for _ in range(_ROUNDS):
    for name, call in calls.items():
      start = time.perf_counter()
      jax.block_until_ready(call())
      times[name].append(time.perf_counter() - start)
  rate = {k: options.vectors / np.median(v) for k, v in times.items()}
  print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
  print(
    f"{options.vectors} vectors, {options.chips} chips a scenario, "
    f"{options.images} images of {shape[0]} x {shape[1]}"
  )
  for name, vectors_a_second in rate.items():
    ratio = ""
    if f"{name}, float32" in rate:
      times_faster = vectors_a_second / rate[f"{name}, float32"]
      ratio = f"{times_faster:6.2f} times float32"
    print(f"{name:22} {vectors_a_second:8.2f} vectors/s {ratio}")


if __name__ == "__main__":
  main()
