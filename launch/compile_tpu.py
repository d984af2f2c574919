"""Compiles the stages' programs for TPUs, with no TPU and no data at hand.

launch/compile_tpu.py --topology=v5e:2x4 --config=configs/digits.py \
  [--stages=search --stages=train] [--method=matmul] [--parts] \
  [--config.<field>=<value> ...]

Needs libtpu (pip install "jax[tpu]", best in an environment of its own). These
are the stages' programs with their shardings; found nets are as wide as may be,
teachers and statistics of each chip are left out. Of each XLA tells what one
device takes: MB of arguments, of outputs beside them and of temporaries; GFLOP;
MB that its operations read and write; number and MB of collectives. A loop's
body counts once. --method and --parts: another way of the products on chips
(hawis_jax/networks/products.py). Exit status 2: a mistake, or too little
memory.
"""

import functools
import math
import os
import re
import sys

# No TPU is to be looked for, neither by jax nor by libtpu.
os.environ |= {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-1",
  "TPU_WORKER_HOSTNAMES": "localhost",
}

# ruff: noqa: E402
from absl import flags
import jax
from jax.experimental import topologies
import numpy as np

from hawis_jax import backend
from hawis_jax import command_line
from hawis_jax import data
from hawis_jax import errors
from hawis_jax.config import settings
from hawis_jax.networks import products
from hawis_jax.pipeline import candidates
from hawis_jax.pipeline import nets
from hawis_jax.pipeline import pretrain
from hawis_jax.pipeline import robustness
from hawis_jax.pipeline import search
from hawis_jax.pipeline import train
from hawis_jax.pipeline.experiment import check_batches
from hawis_jax.pipeline.experiment import Experiment
from hawis_jax.pipeline.experiment import with_splits
from hawis_jax.robustness import monte_carlo
from hawis_jax.runtime import device_memory
from hawis_jax.runtime import sharding

_ALL = ("pretrain", "search", "train", "robustness")
# Image's side and channels, classes, test images; other sets are as ImageNet.
_SETS = {
  "digits": (8, 1, 10, 360),
  "cifar10": (32, 3, 10, 10_000),
  "cifar100": (32, 3, 100, 10_000),
}
_IMAGENET = 224, 3, 1000, 50_000
_COLLECTIVE = re.compile(  # not an asynchronous one's start, but its end
  r" = (\S+|\(.*?\)) (all-gather|all-reduce|all-to-all|collective-permute"
  r"|reduce-scatter)(?:-done)?\("
)
_ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


def topology(name):
  """Returns TPUs that need not be there; `name` is e.g. "v5e:16x16"."""
  # A chip of a v4 is one device of jax, as of later ones.
  options = {"chip_config_name": "megacore"} if name.startswith("v4") else {}
  if name.endswith(":1x1"):  # of a host of its own; others have hosts of 2x2
    options["chips_per_host_bounds"] = [1, 1, 1]
  try:
    found = topologies.get_topology_desc(name, "tpu", **options)
  except Exception as error:  # as different ones as reasons
    raise errors.InputError(f"--topology={name}: {error}") from error
  return sorted(found.devices, key=lambda d: (d.process_index, d.id))


class _Experiment(Experiment):  # its images are zeros
  def evaluation(self, source, batch_size, limit=None):
    shape = -(-(limit or len(source)) // batch_size), batch_size
    labels = np.zeros(shape, np.int32)
    images = np.zeros((*shape, *self.splits.image_shape), np.uint8)
    return monte_carlo.Batches(images, labels, labels == 0)


def programs(stage, experiment, devices):
  """Yields (name, executable) of one stage."""
  config = experiment.config
  check_batches(config, len(devices), [stage])
  mesh, first = sharding.training_mesh(devices), np.int32(0)
  batch = nets.batch_shapes(experiment, config[stage].batch_size, mesh)
  if stage == "pretrain":
    made = pretrain.make_programs(experiment, mesh)
    state = nets.state_shapes(made.init, mesh)
    yield "step", made.sandwich.lower(state, first, batch).compile()
  elif stage == "search":
    methods = search.build_methods(experiment)
    yield (
      "update",
      device_memory.compile_fitting(
        functools.partial(search.make_updates, experiment, methods, mesh),
        config.search.vectors_per_step,
        math.inf,  # the compiler minds a device's
        search.arguments(experiment, mesh),
        candidates.VECTOR,
      ),
    )
  elif stage == "train":
    for net in nets.trained(experiment):
      module = nets.module(net, experiment)
      made = train.make_programs(net, module, experiment, mesh)
      state = nets.state_shapes(made.init, mesh)
      yield net, made.step.compile(state, first, batch, None)
  else:
    steps = robustness.measurements(config)
    steps = [
      step for step in steps if step.severity and step.severity.is_random
    ]
    for step in {(step.net, step.scenario): step for step in steps}.values():
      fixed = step._replace(statistics="fixed")
      found = robustness.plan(
        fixed,
        nets.module(step.net, experiment),
        experiment,
        sharding.evaluation_mesh(config.robustness.chips, devices),
        config.robustness.memory_gb * 1e9 or math.inf,
      )
      for name, executable in found.executables.items():
        yield f"{step.net}, {step.scenario}: {name}", executable


def collectives(text):
  """Returns {kind: (number, bytes of results)} of a program's HLO text."""
  found = {}
  for result, kind in _COLLECTIVE.findall(text):
    count, size = found.get(kind, (0, 0))
    for bits, sizes in _ARRAY.findall(result):
      elements = math.prod(int(n) for n in sizes.split(",") if n)
      size += elements * int(bits or 8) // 8
    found[kind] = count + 1, size
  return found


def row(name, executable):
  """Returns a program's line of the table."""
  numbers = [size / 1e6 for size in device_memory.needs(executable)]
  found = executable.cost_analysis()
  numbers += [found["flops"] / 1e9, found["bytes accessed"] / 1e6]
  moved = [
    f"{count} {kind} {size / 1e6:.3f}"
    for kind, (count, size) in collectives(executable.as_text()).items()
  ]
  numbers = "".join(f" {number:9.3f}" for number in numbers)
  return f"{name:44}{numbers}  {', '.join(moved) or 'none'}"


def define(own):
  """Defines the command's flags."""
  flags.DEFINE_string("topology", "v5e:2x4", "E.g. v5e:16x16.", own)
  flags.DEFINE_multi_enum("stages", _ALL, _ALL, "Of a run's own.", own)
  default = products.DEFAULT
  method = default.method, products.METHODS, "Of products on chips."
  flags.DEFINE_enum("method", *method, own)
  flags.DEFINE_bool("parts", default.parts, "Weights as three bfloat16.", own)


def main(given, _):
  """Prints the table."""
  config = given.config.copy_and_resolve_references()
  known = _ALL[0 if settings.searches(config) else 2 :]
  config.train.loss = "labels"
  settings.validate(config)
  side, channels, classes, test = _SETS.get(config.data.name, _IMAGENET)
  shape = (*[config.data.image_size or side] * 2, channels)
  splits = data.Splits("", "", (), (), range(test), shape, classes)
  devices = topology(given.topology)
  print(f"jax {jax.__version__}, {len(devices)} devices, {given.topology}")
  print(
    f"{'':44}    argum.   outputs   tempor.     GFLOP  MB moved  collectives"
  )
  way = products.Way(given.method, given.parts)
  with backend.compiling_for("tpu"), products.using(way):
    experiment = _Experiment(**vars(with_splits(config, splits)))
    for stage in sorted(set(given.stages) & set(known), key=_ALL.index):
      for name, executable in programs(stage, experiment, devices):
        print(row(f"{stage}, {name}", executable), flush=True)


if __name__ == "__main__":
  sys.exit(command_line.run(main, sys.argv, define))
