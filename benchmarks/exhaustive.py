"""Trains every net of a small space and writes the table of digits_1024.py.

python benchmarks/exhaustive.py --workdir runs/exhaustive  # makes the table
python benchmarks/exhaustive.py --retrain 0 1023  # rows of it, made anew

One program trains every net: the masked net of the greatest widths computes
what the narrower net does. Its kernels are He normal of the narrower net's own
fan-out. Nets of a seed see the same batches and start from kernels of their
own, which follow from the seed and the net's number alone: a row does not
depend on what else is computed. It does depend on how the machine rounds, so it
comes back to the bit only with the jax and the CPU that the table names.

It runs on one core and goes on where it was cut off.
"""

import argparse
from collections.abc import Iterator, Sequence
import functools
import itertools
import json
import os
import pathlib
import platform
import time
from typing import Any
from unittest import mock

from hawis_jax import backend
from hawis_jax.pipeline import candidates
from hawis_jax.search import reward
from hawis_jax.training import supernet

# Neither another backend nor the number of cores must change the result.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
  f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
).strip()
backend.configure()

# ruff: noqa: E402
import digits_1024
import jax
import numpy as np
import standalone

from hawis_jax import errors
from hawis_jax.arithmetic import binary
from hawis_jax.config import settings
from hawis_jax.networks import net_variables
from hawis_jax.pipeline.experiment import prepare
from hawis_jax.runtime import storage
from hawis_jax.training import optimization

_SEEDS = (0, 1)
_PART = 32  # nets of a file of partial results


def environment() -> dict[str, str]:
  """What a row depends on to the bit: jax's version and the CPU."""
  found = {"jax": jax.__version__, "cpu": platform.machine(), "vectors": ""}
  info = pathlib.Path("/proc/cpuinfo")
  if info.exists():
    lines = (line.split(":", 1) for line in info.read_text().splitlines())
    facts = {line[0].strip(): line[1].strip() for line in lines if line[1:]}
    found["cpu"] = facts.get("model name", found["cpu"])
    flags = facts.get("flags", "").split()
    # Virtual machines may hide the model, but not these.
    found["vectors"] = " ".join(
      flag for flag in flags if flag.startswith(("avx", "fma", "amx"))
    )
  return found


class Rows:
  """Makes rows of one seed."""

  def __init__(self, seed: int):
    config = digits_1024.get_config(seed)
    self._experiment = experiment = prepare(config)
    self._vectors = digits_1024.vectors(config)
    batches = experiment.train_batches(
      experiment.splits.train, config.train.batch_size, 0
    )
    batches = list(itertools.islice(batches, config.train.steps))
    self._batches = jax.tree.map(lambda *x: np.stack(x), *batches)
    self._scorer = candidates.make_scorer(experiment, None)
    self._run = jax.jit(functools.partial(_train_and_score, experiment))

  def __call__(self, net: int) -> tuple[np.ndarray, np.ndarray]:
    """(clean accuracy, accuracies `[D, S]`) of net number `net`."""
    key = jax.random.fold_in(self._experiment.key("train_init"), net)
    # XLA's convolution on one thread is 4 to 7 times slower on these maps than
    # the product of patches that smaller ones take; both are exact.
    with mock.patch.object(binary, "_SMALL_MAP", 64):
      correct = self._run(key, self._vectors[net], self._batches, self._scorer)
    accuracy = np.asarray(correct) / len(self._experiment.splits.validation)
    scenarios = len(self._experiment.config.search.scenarios)
    return accuracy[-1], accuracy[:-1].reshape(scenarios, -1)


def _train_and_score(experiment, key, vector, batches, scorer):
  """Correct `[D S + 1]` of a net on all chips; the last has no defects."""
  config, module = experiment.config, experiment.supernet
  optimizer = optimization.make_optimizer(
    config.train.optimizer, config.train.steps
  )
  fresh = net_variables.init(module, key, experiment.splits.image_shape)
  params = standalone.narrowed(fresh["params"], module, vector)
  state = optimization.TrainState(params, (), optimizer.init(params))

  def step(state, batch):
    return supernet.sandwich_step(
      state,
      vector[None],
      batch,
      module=module,
      optimizer=optimizer,
      distill=False,
    )

  state, _ = jax.lax.scan(step, state, batches)
  devices = settings.search_devices(config)
  # The same chips whatever the training's seed.
  root = jax.random.key(0)
  keys = reward.chip_keys(root, config.search.chips, len(devices) - 1)
  score = reward.make_score(experiment, devices)
  scorer = scorer.replace(params=state.params)
  return score(scorer, vector[None], [*keys, root[None]]).correct[:, 0]


def make(workdir: pathlib.Path, again: int) -> None:
  """Makes the table, or what is left of it, and prints its progress.

  Args:
    workdir: of partial results.
    again: nets trained with the second seed too, chosen at random.

  Raises:
    InputError: `workdir` holds rows of other settings, or of another machine.
  """
  config = digits_1024.get_config()
  nets = digits_1024.vectors(config)
  # The beginning of this order, of any length, is a random sample.
  order = np.random.RandomState(0).permutation(len(nets))
  with storage.locked(workdir):
    made_with = {
      "settings": digits_1024.settings(config),
      "environment": environment(),
    }
    path = workdir / "settings.json"
    if path.exists() and storage.read_json(path) != made_with:
      raise errors.InputError(
        f"{workdir} holds rows of other settings; take another --workdir"
      )
    storage.write_json(path, made_with)
    for seed, count in zip(_SEEDS, (len(nets), again), strict=True):
      _make_parts(workdir, seed, order[:count])
    _write_table(workdir, config, nets, order, made_with)


def _make_parts(workdir, seed, order):
  """Makes the rows of one seed that are not there yet, part by part."""
  rows, started, count = None, time.monotonic(), 0
  for start in range(0, len(order), _PART):
    path = _part(workdir, seed, start)
    if path.exists():
      continue
    rows = rows or Rows(seed)
    made = [rows(int(net)) for net in order[start : start + _PART]]
    clean, chips = (np.stack(x) for x in zip(*made, strict=True))
    partial = path.with_suffix(".tmp")
    with partial.open("wb") as file:
      np.savez(file, clean=clean, chips=chips)
    partial.replace(path)
    count += len(made)
    pace = (time.monotonic() - started) / count
    print(
      f"seed {seed}: {start + len(made)} of {len(order)} nets, {pace:.2f} s "
      f"a net, clean {clean.mean():.3f}",
      flush=True,
    )


def _part(workdir, seed, start):
  return workdir / f"seed{seed}_{start:04d}.npz"


def _write_table(workdir, config, nets, order, made_with):
  """Gathers all parts; NaN where a net was not trained with a seed."""
  scenarios, chips = len(config.search.scenarios), config.search.chips
  shape = len(_SEEDS), len(nets)
  # Halves hold the multiples of 1 / 256 exactly.
  table = {
    "clean": np.full(shape, np.nan, np.float16),
    "chips": np.full((*shape, scenarios, chips), np.nan, np.float16),
  }
  for row, seed in enumerate(_SEEDS):
    for start in range(0, len(nets), _PART):
      path = _part(workdir, seed, start)
      if path.exists():
        with np.load(path) as part:
          where = order[start : start + len(part["clean"])]
          for name, values in table.items():
            values[row, where] = part[name]
  experiment = prepare(config)
  costs = [experiment.cost(tuple(int(w) for w in net)) for net in nets]
  digits_1024.PATH.parent.mkdir(exist_ok=True)
  np.savez_compressed(
    digits_1024.PATH,
    widths=nets.astype(np.int16),
    arrays=np.array([c.arrays for c in costs], np.int32),
    macs=np.array([c.macs for c in costs], np.int32),
    seeds=np.array(_SEEDS, np.int32),
    **table,
    **{name: np.array(json.dumps(value)) for name, value in made_with.items()},
  )
  print(f"{digits_1024.PATH}: {digits_1024.PATH.stat().st_size} bytes")


def retrain(nets: Sequence[int]) -> Iterator[dict[str, Any]]:
  """Makes rows of the first seed anew; yields them beside the stored ones."""
  table = digits_1024.load()
  rows = Rows(int(table["seeds"][0]))
  for net in nets:
    clean, chips = rows(net)
    yield {
      "net": net,
      "widths": table["widths"][net].tolist(),
      "clean": clean,
      "clean_stored": table["clean"][0, net],
      "greatest_difference_of_chips": np.abs(
        chips - table["chips"][0, net]
      ).max(),
      "same_environment": table["environment"] == environment(),
    }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", default="runs/exhaustive")
  parser.add_argument("--again", type=int, default=1024, metavar="NETS")
  parser.add_argument("--retrain", type=int, nargs="+", metavar="NET")
  options = parser.parse_args()
  if options.retrain:
    for row in retrain(options.retrain):
      print(json.dumps(row), flush=True)
  else:
    make(pathlib.Path(options.workdir), options.again)


if __name__ == "__main__":
  main()
