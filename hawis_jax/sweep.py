"""Stage 4: accuracy of every trained net on chips, over levels of defects.

All nets meet the same chips: chip s has the same key for every net, scenario
and level.
"""

import dataclasses
import functools
import pathlib
from typing import NamedTuple

from flax import linen as nn
import jax
import ml_collections
import numpy as np

from hawis_jax import config as config_lib
from hawis_jax import cost
from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax import experiment as experiment_lib
from hawis_jax import files
from hawis_jax import interop
from hawis_jax import intervals
from hawis_jax import metrics as metrics_lib
from hawis_jax import montecarlo
from hawis_jax import nets
from hawis_jax import preemption
from hawis_jax import processes
from hawis_jax import robustness
from hawis_jax import scenarios
from hawis_jax import tally as tally_lib
from hawis_jax import train
from hawis_jax import variables as variables_lib

_FORMAT = 2  # of result.json: a new one where chips or their keys change


def run(
  experiment: experiment_lib.Experiment,
  workdir: pathlib.Path,
  metrics: metrics_lib.Metrics,
) -> dict:
  """Sweeps what is left of the nets; returns robustness/result.json.

  The file is rewritten after every level, and partial.json after every chunk of
  chips, so an interrupted sweep loses a chunk at most.
  """
  config = experiment.config
  path = workdir / "robustness" / "result.json"
  result = processes.on_first(lambda: _stored(path))
  todo = todo_list(config)
  done = [step for step in todo if _is_done(result, step)]
  if len(done) == len(todo):
    return result
  most = config.robustness.chips
  if config.robustness.target_ci:
    most = config.robustness.max_chips
  ends = np.cumsum([_chips(step, most) for step in todo]).tolist()
  partial = path.with_name("partial.json")
  start = sum(_chips(step, most) for step in done)
  left = [step for step in todo if step not in done]
  following = next((step for step in left if step.level is not None), None)
  if following:
    start += processes.on_first(
      lambda: tally_lib.saved_chips(partial, following.name)
    )
  progress = metrics.stage("robustness", total=ends[-1], start=start)
  images = experiment.unpadded(
    experiment.splits.test, config.robustness.images or None
  )
  loaded = None
  for step, end in zip(todo, ends, strict=True):
    if step in done:
      continue
    if loaded != step.net:
      module, variables = train.load(step.net, experiment, workdir)
      loaded = step.net
    if step.net not in result["nets"]:
      result["nets"][step.net] = _describe(
        step.net, module, variables, experiment, workdir
      )
      processes.on_first(lambda: files.write_record(path, result))
    entry = result["nets"][step.net]
    if step.level is None:
      continue
    first = end - _chips(step, most)
    digest = variables_lib.digest(variables)
    identity = [_FORMAT, config.seed, jax.default_backend(), digest]
    tally = tally_lib.Tally(
      partial,
      step.name,
      identity,
      num_images=len(images[1]),
    )

    def show(chips, tally=tally, first=first):
      known = {"accuracy": tally.accuracy.mean()} if tally.count else {}
      progress.show(first + chips, known)

    for _ in _evaluate(
      tally, step.level, module, variables, images, experiment, show
    ):
      values = {"accuracy": tally.accuracy.mean()}
      # Before it is saved: a line too many is dropped, one too few is missing.
      progress.report(min(first + tally.count, end), values)
      metrics.flush()
      tally.save()
      if preemption.reached():
        raise errors.Preempted(
          f"robustness, saved at chip {first + tally.count} of {ends[-1]}"
        )
    if tally.count < end - first:
      progress.report(end, {"accuracy": tally.accuracy.mean()})
      metrics.flush()
    entry["sweeps"].setdefault(step.scenario, []).append(
      {"level": step.level.value, **tally.summary()}
    )
    processes.on_first(lambda: files.write_record(path, result))
    tally.remove_saved()
  return result


def _stored(path):
  """What was measured before.

  Raises:
    InputError: by a version whose chips are not those of this one.
  """
  if not path.exists():
    return {"format": _FORMAT, "nets": {}}
  result = files.read_record(path)
  if result.get("format") != _FORMAT:
    raise errors.InputError(
      f"{path}: got results of format {result.get('format', 1)}, allowed is "
      f"{_FORMAT}: chip numbers stand for other draws of defects now. Delete "
      f"{path.parent} to measure anew, or take another --workdir"
    )
  return result


def _chips(step, most):
  """At most, of one measurement; a net by itself counts as none."""
  if step.level is None:
    return 0
  return most if step.level.is_random else 1


def _evaluate(tally, level, module, variables, images, experiment, show):
  """Adds a level's chips to its tally, and yields after every chunk of them."""
  config = experiment.config.robustness
  variables = calibrated(experiment, level, module, variables)
  net = make_setting(experiment, level, module, variables)
  limits = make_limits(experiment)
  wanted = config.chips if level.is_random else 1
  while True:
    start = tally.count
    chunks = montecarlo.classify(
      experiment.key("robustness"),
      net,
      *images,
      range(start, wanted),
      limits=limits,
      progress=lambda chips, start=start: show(start + chips),
    )
    for hits in chunks if start < wanted else ():
      tally.add(hits)
      yield
    if not (config.target_ci and level.is_random):
      return
    # Of these chips alone: an interrupted run may hold more already.
    before, accuracy = wanted, tally.accuracy[:wanted]
    wanted = intervals.chips_needed(
      accuracy, config.target_ci, config.max_chips
    )
    if wanted <= before:
      return


def calibrated(
  experiment: experiment_lib.Experiment,
  level: scenarios.Level,
  module: nn.Module,
  variables: dict,
) -> dict:
  """A net's variables, with the ranges of the level's converters if needed."""
  device = level.device
  if not device.adc_bits or device.adc_range != "calibrated":
    return variables
  images = _calibration_batches(experiment)[0]
  return robustness.calibrate_converters(module, variables, images, device)


def make_setting(
  experiment: experiment_lib.Experiment,
  level: scenarios.Level,
  module: nn.Module,
  variables: dict,
) -> montecarlo.Setting:
  """What the chips of a level have in common; `variables` of `calibrated`."""
  on_chip = experiment.config.robustness.batch_norm == "chip"
  return montecarlo.Setting(
    module,
    variables,
    level.device,
    interop.load_faults(level.fault_map) if level.fault_map else None,
    level.layers,
    _calibration_batches(experiment) if on_chip else None,
  )


def make_limits(experiment: experiment_lib.Experiment) -> montecarlo.Limits:
  """What a chunk of chips may take."""
  config = experiment.config.robustness
  return montecarlo.Limits(
    config.chips_per_step, config.batch_size, config.memory_gb * 1e9
  )


def _calibration_batches(experiment):
  """Of training, uint8 `[N, B, H, W, C]`."""
  config = experiment.config.robustness
  return experiment.evaluation(
    experiment.splits.train, config.calibration_batch, config.calibration_images
  ).image


def check_chips(
  experiment: experiment_lib.Experiment, workdir: pathlib.Path
) -> None:
  """Checks that the scenarios' devices can hold and read the nets.

  As long as the found net's widths are not known, the widest one is checked.

  Raises:
    InputError: a sense amplifier for a column of several tiles, measured faults
      that do not fit, or layers that there are not.
  """
  for step in todo_list(experiment.config):
    level = step.level
    if level is None or not (
      level.fault_map or level.layers or level.device.adc_bits == 1
    ):
      continue
    if (workdir / "search" / "result.json").exists():
      module = train.net_module(step.net, experiment, workdir)
    else:
      module = train.widest_module(step.net, experiment)
    faults = interop.load_faults(level.fault_map) if level.fault_map else None
    params = variables_lib.shapes(module, experiment.splits.image_shape)
    device = dataclasses.replace(level.device, adc_range="full_scale")

    program = functools.partial(
      crossbar.program,
      device=device,
      bits=module.weight_bits,
      faults=faults,
      layers=level.layers,
    )
    try:
      jax.eval_shape(program, jax.random.key(0), {"params": params["params"]})
    except errors.InputError as error:
      raise errors.InputError(
        f"config.robustness.scenarios, {step.scenario}, net {step.net}: {error}"
      ) from error


def load_result(workdir: pathlib.Path) -> dict:
  """Returns the sweep's result.

  Raises:
    InputError: the stage has not begun, or its file is damaged.
  """
  path = workdir / "robustness" / "result.json"
  if not path.exists():
    raise errors.InputError(f"{path}: missing; run --stages robustness first")
  return _stored(path)


class Step(NamedTuple):
  """One measurement.

  Attributes:
    net: its name.
    scenario: key of the scenario; None: without defects.
    level: of the scenario.
  """

  net: str
  scenario: str | None = None
  level: scenarios.Level | None = None

  @property
  def name(self) -> list:
    """What JSON holds of a step with a level."""
    return [self.net, self.scenario, self.level.value]


def todo_list(config: ml_collections.ConfigDict) -> list[Step]:
  """Every measurement of the stage; float nets meet no chips."""
  steps = []
  for net in config.train.nets:
    steps.append(Step(net))
    if nets.parse(net).kind != nets.FLOAT:
      steps += [
        Step(net, scenario.key, level)
        for scenario in config_lib.sweeps(config)
        for level in scenario.levels
      ]
  return steps


def _is_done(result, step):
  entry = result["nets"].get(step.net)
  if step.level is None or entry is None:
    return entry is not None
  levels = [e["level"] for e in entry["sweeps"].get(step.scenario, [])]
  return step.level.value in levels


_WEIGHT_BITS = {nets.BINARY: 1, nets.INT8: 8, nets.FLOAT: 32}


def _describe(net, module, variables, experiment, workdir):
  """A net without its sweeps: its size, and its accuracy without defects."""
  config = experiment.config.robustness
  test, limit = experiment.splits.test, config.images or None
  batches = experiment.evaluation_stream(
    test, 8 * montecarlo.block_size(experiment.splits.image_shape), limit
  )
  kind = nets.parse(net).kind
  size = dict.fromkeys(cost.COUNTS)
  if kind == nets.BINARY:
    net_cost = experiment.cost(module.max_widths)
    size = {name: int(getattr(net_cost, name)) for name in cost.COUNTS}
  elif kind == nets.INT8:
    device = experiment.device
    size |= cost.stored_weights(variables["params"], device.tile_shape)
    # Slices of a weight lie in arrays of their own.
    size["arrays"] *= crossbar.cell_slices(device, module.weight_bits)[0]
  return {
    "widths": list(module.max_widths),
    "weight_bits": _WEIGHT_BITS[kind],
    "step": train.chosen_step(net, experiment, workdir),
    **size,
    "test_images": limit or len(test),
    "clean": robustness.ideal_accuracy(module, variables, batches),
    "sweeps": {},
  }
