"""What several devices cost: time on the CPU's, collectives on TPUs.

python benchmarks/scaling.py [--rounds 5] [--skip times] [--stages pretrain]

Times: a step of "pretrain", the scoring of "search" and the Monte Carlo of
"robustness" on 1, 2, 4 and 8 devices, which share this machine's cores: so
their ratio to one device with equal work is the overhead of dividing it, not a
speed-up. "Strong" is one amount of work on all numbers of devices, "weak" work
that grows with them; medians of interleaved rounds.

Collectives: number and bytes a step and device, of the programs compiled for 8
to 1024 TPU chips, where libtpu is installed, else for 8 to 64 CPU devices. The
work grows with the devices.
"""

import argparse
import importlib.util
import os
import pathlib
import subprocess
import sys
import time

_MOST = 8  # CPU devices that are timed
_TOPOLOGIES = {
  8: "v5e:2x4",
  16: "v5e:4x4",
  64: "v5e:8x8",
  256: "v5e:16x16",
  1024: "v5p:8x8x16",
}
_STAGES = ("pretrain", "search", "robustness")
_HOST_DEVICES = (8, 16, 32, 64)


# Before jax starts. The variable is of a process that only compiles.
_COMPILED = "HAWIS_SCALING_DEVICES"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count="
  f"{os.environ.get(_COMPILED, _MOST)}"
)

from hawis_jax import backend

backend.configure()

# ruff: noqa: E402
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import ahead
from hawis_jax import config as config_lib
from hawis_jax import crossbar
from hawis_jax import montecarlo
from hawis_jax import pretrain
from hawis_jax import scoring
from hawis_jax import sharding
from hawis_jax import tpu
from hawis_jax import variables

_SHARE = 8  # images, width vectors and chips of a device, where work grows


def _config():
  """A net small enough for every number of devices."""
  config = config_lib.default()
  config.network.depth = 8
  config.space.choices = ((8, 16), (16, 32), (32, 64))
  config.search.budget_uniform = 0.7
  config.pretrain.random_widths = 1
  config.search.images = config.search.calibration_images = 64
  config.search.batch_size = 64
  config.search.vectors_per_step = _SHARE
  config.robustness.images = 64
  config.robustness.scenarios = (dict(variation=0.5),)
  return config


def _pretrain_call(experiment, devices, work):
  """A step on `work` images."""
  mesh = sharding.training_mesh(devices)
  programs = pretrain.make_programs(experiment, mesh)
  state = programs.init(experiment.key("pretrain_init"))
  rng = np.random.default_rng(0)
  shape = work, *experiment.splits.image_shape
  batch = sharding.batch(
    {
      "image": rng.integers(0, 256, shape).astype(np.uint8),
      "label": rng.integers(0, 10, work).astype(np.int32),
    },
    mesh,
  )

  def call():
    nonlocal state
    state, values = programs.sandwich(state, 0, batch)
    return values

  return call


def _scoring_call(experiment, devices, work):
  """The scores of `work` width vectors."""
  mesh = sharding.training_mesh(devices)
  net = jax.jit(variables.init, static_argnums=(0, 2))(
    experiment.supernet, jax.random.key(0), experiment.splits.image_shape
  )
  on_chips = config_lib.search_devices(experiment.config)[:-1]
  rng = np.random.default_rng(0)
  vectors = [
    [rng.choice(layer) for layer in experiment.space.choices]
    for _ in range(work)
  ]
  arguments = sharding.place(
    (
      scoring.make_scorer(experiment, net["params"]),
      jnp.array(vectors, jnp.int32),
      scoring.chip_keys(jax.random.key(1), 2, len(on_chips)),
    ),
    mesh,
  )
  score = jax.jit(scoring.make_score(experiment, on_chips, mesh))
  return lambda: score(*arguments)


def _montecarlo_call(experiment, devices, work):
  """The hits of `work` chips."""
  module = experiment.network(experiment.widths["baseline_1x"])
  shape = experiment.splits.image_shape
  net = jax.jit(variables.init, static_argnums=(0, 2))(
    module, jax.random.key(0), shape
  )
  setting = montecarlo.Setting(module, net, crossbar.Device(variation=0.5))
  images, labels = experiment.unpadded(experiment.splits.test, 64)

  def call():
    return list(
      montecarlo.classify(
        jax.random.key(2), setting, images, labels, range(work), devices=devices
      )
    )

  return call


_CALLS = {
  "pretrain": _pretrain_call,
  "search": _scoring_call,
  "robustness": _montecarlo_call,
}


def _times(rounds, stages):
  """Prints a row for each stage and number of devices."""
  experiment = ahead.prepare(_config(), 1)
  counts = [n for n in (1, 2, 4, 8) if n <= _MOST]
  whole = counts[-1] * _SHARE
  cases = {
    case
    for n in counts
    for case in ((n, whole), (n, n * _SHARE), (1, n * _SHARE))
  }
  print(f"{whole} images, vectors or chips in all; weak: {_SHARE} a device")
  print(
    f"{'':16}{'':>8} {'strong':>18} {'weak':>24}\n"
    f"{'stage':16}{'devices':>8} {'ms':>9} {'to one':>8} "
    f"{'work':>6} {'ms':>9} {'to one':>8}"
  )
  for stage in stages:
    calls = {
      case: _CALLS[stage](experiment, jax.devices()[: case[0]], case[1])
      for case in sorted(cases)
    }
    seconds = {case: [] for case in calls}
    for round_ in range(rounds + 1):
      for case, call in calls.items():
        start = time.perf_counter()
        jax.block_until_ready(call())
        if round_:  # the first one compiles
          seconds[case].append(time.perf_counter() - start)
    ms = {case: 1e3 * float(np.median(s)) for case, s in seconds.items()}
    for n in counts:
      strong, weak = ms[n, whole], ms[n, n * _SHARE]
      print(
        f"{stage:16}{n:8} {strong:9.1f} {strong / ms[1, whole]:8.2f} "
        f"{n * _SHARE:6} {weak:9.1f} {weak / ms[1, n * _SHARE]:8.2f}",
        flush=True,
      )


def _collectives(count, name, stages):
  """Prints the programs' collectives on so many devices."""
  if name:
    devices, chip = tpu.topology(name)
    platform, memory = "tpu", chip.memory
  else:
    devices, platform, memory = jax.devices(), "cpu", 16e9
  config = _config()
  config.pretrain.batch_size = count * _SHARE
  config.robustness.chips = count * _SHARE
  config.search.proposals = count * _SHARE
  config.search.methods = ("random",)
  config.search.scenarios = (dict(variation=0.5),)
  config.train.nets = ("baseline_1x",)
  with backend.compiling_for(platform):
    for stage in stages:
      experiment = ahead.prepare(config, count, [stage])
      for what, needs in ahead.programs(stage, experiment, devices, memory):
        moved = ", ".join(
          f"{number} {kind} {size / 1e6:.3f} MB"
          for kind, (number, size) in needs.collectives.items()
        )
        print(
          f"{count:6} {name or 'CPU':12} {what:32} {needs.flops / 1e9:9.3f} "
          f"GFLOP  {moved or 'none'}",
          flush=True,
        )


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--skip", choices=("times", "collectives"))
  parser.add_argument("--stages", nargs="+", choices=_STAGES, default=_STAGES)
  parser.add_argument("--compile", nargs=2, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.compile:
    count, name = options.compile
    name = "" if name == "cpu" else name
    _collectives(int(count), name, options.stages)
    return
  print(f"jax {jax.__version__}, {os.cpu_count()} CPU cores")
  if options.skip != "times":
    _times(options.rounds, options.stages)
  if options.skip == "collectives":
    return
  has_tpu = importlib.util.find_spec("libtpu") is not None
  names = _TOPOLOGIES if has_tpu else dict.fromkeys(_HOST_DEVICES, "cpu")
  print("\ncollectives a step and device")
  for count, name in names.items():
    # With all optimisations: one of them moves the sum of gradients out of the
    # loop over width vectors.
    environment = os.environ | {_COMPILED: str(1 if has_tpu else count)}
    command = [sys.executable, pathlib.Path(__file__), "--stages"]
    command += [*options.stages, "--compile", str(count), name]
    subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
  main()
