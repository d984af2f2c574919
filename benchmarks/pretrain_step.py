"""Steps of super-net training on chips against steps without defects.

python benchmarks/pretrain_step.py [config ...]

For each configuration (default: configs/digits.py): median time of a sandwich
step on a constant batch with none and with one of the random width vectors on a
newly drawn chip, measured in turn, their ratio, and the time of drawing and
programming the chip alone.
"""

import functools
import importlib.util
import pathlib
import sys
import time

from hawis_jax import backend
from hawis_jax.training import supernet

backend.configure()

# ruff: noqa: E402
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import cost
from hawis_jax.config import settings
from hawis_jax.pipeline import pretrain
from hawis_jax.pipeline.experiment import prepare

_ROUNDS = 15
_DIGITS = pathlib.Path(__file__).parents[1] / "configs" / "digits.py"


def _load(path):
  spec = importlib.util.spec_from_file_location("benchmarked", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  config.pretrain.faulty_widths = 1
  settings.validate(config)
  return prepare(config)


def _calls(experiment):
  """{name: function of a step number}."""
  config = experiment.config.pretrain
  state, optimizer = pretrain.init(experiment)
  batch = next(
    experiment.train_batches(experiment.splits.train, config.batch_size, 0)
  )
  bands = cost.cost_bands(experiment.space, experiment.costs, config.cost_bins)
  root = experiment.key("pretrain")
  devices = settings.pretrain_devices(experiment.config)
  step_function = functools.partial(
    supernet.sandwich_step,
    module=experiment.supernet,
    optimizer=optimizer,
    distill=config.distill,
  )

  def step(faulty, state, number, batch):
    key = jax.random.fold_in(root, number)
    vectors = supernet.sample_widths(
      key, bands, experiment.space, config.random_widths
    )
    chip = supernet.sample_chip(key, state.params, devices) if faulty else None
    return step_function(state, vectors, batch, chip, faulty=faulty)

  def program(params, number):
    key = jax.random.fold_in(root, number)
    return supernet.sample_chip(key, params, devices)

  calls = {
    name: functools.partial(
      lambda run, number: run(state, jnp.int32(number), batch),
      jax.jit(functools.partial(step, faulty)),
    )
    for name, faulty in (("ideal", 0), ("on a chip", 1))
  }
  program = jax.jit(program)
  calls["chip alone"] = lambda n: program(state.params, jnp.int32(n))
  return calls


def main(paths: list[str]) -> None:
  """Prints the table."""
  print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
  for path in paths or [_DIGITS]:
    experiment = _load(path)
    calls = _calls(experiment)
    for call in calls.values():
      jax.block_until_ready(call(0))
    seconds = {name: [] for name in calls}
    for number in range(_ROUNDS):
      for name, call in calls.items():
        start = time.perf_counter()
        jax.block_until_ready(call(number))
        seconds[name].append(time.perf_counter() - start)
    times = {name: float(np.median(values)) for name, values in seconds.items()}
    ratio = times["on a chip"] / times["ideal"]
    shown = ", ".join(f"{k} {1e3 * v:.1f} ms" for k, v in times.items())
    config = experiment.config.pretrain
    print(
      f"{path}: batch {config.batch_size}, 1 of {config.random_widths} random "
      f"vectors on a chip: {shown}; ratio {ratio:.2f}",
      flush=True,
    )


if __name__ == "__main__":
  main(sys.argv[1:])
