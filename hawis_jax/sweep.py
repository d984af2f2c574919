"""Stage 4: accuracy of every trained net on chips, over levels of defects.

All nets meet the same chips: chip s has the same key for every net, scenario
and level.
"""

import dataclasses
import pathlib
from typing import NamedTuple

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
from hawis_jax import metrics as metrics_lib
from hawis_jax import nets
from hawis_jax import robustness
from hawis_jax import scenarios
from hawis_jax import train
from hawis_jax import variables as variables_lib


def run(
  experiment: experiment_lib.Experiment,
  workdir: pathlib.Path,
  metrics: metrics_lib.Metrics,
) -> dict:
  """Sweeps what is left of the nets; returns robustness/result.json.

  The file is rewritten after every level, so an interrupted sweep goes on.
  """
  config = experiment.config
  path = workdir / "robustness" / "result.json"
  result = files.read_json(path) if path.exists() else {"nets": {}}
  todo = todo_list(config)
  done = [step for step in todo if _is_done(result, step)]
  if len(done) == len(todo):
    return result
  progress = metrics.stage("robustness", total=len(todo), start=len(done))
  images = config.robustness.images or None
  batches = experiment.evaluation(
    experiment.splits.test, config.robustness.batch_size, images
  )
  calibration = None
  if config.robustness.batch_norm == "chip":
    calibration = experiment.evaluation(
      experiment.splits.train,
      config.robustness.batch_size,
      config.robustness.calibration_images,
    ).image
  loaded = None
  for number, step in enumerate(todo, 1):
    if step in done:
      continue
    if loaded != step.net:
      module, variables = train.load(step.net, experiment, workdir)
      loaded = step.net
    if step.net not in result["nets"]:
      result["nets"][step.net] = _describe(
        step.net, module, variables, experiment
      )
      files.write_json(path, result)
    entry = result["nets"][step.net]
    if step.level is None:
      progress.report(number, {"accuracy": entry["clean"]})
      continue
    accuracy = _evaluate(
      step.level, module, variables, batches, calibration, experiment
    )
    entry["sweeps"].setdefault(step.scenario, []).append(
      {
        "level": step.level.value,
        **robustness.summarize(accuracy),
        "accuracy": accuracy.astype(np.float64).tolist(),
      }
    )
    files.write_json(path, result)
    progress.report(number, {"accuracy": float(accuracy.mean())})
  return result


def _evaluate(level, module, variables, batches, calibration, experiment):
  """Accuracy of a net on the chips of one level, float32 `[S]`."""
  config, device = experiment.config.robustness, level.device
  if device.adc_bits and device.adc_range == "calibrated":
    count = min(config.batch_size, config.calibration_images)
    images = experiment.evaluation(experiment.splits.train, count, count).image
    variables = robustness.calibrate_converters(
      module, variables, images[0], device
    )
  return robustness.evaluate_chips(
    experiment.key("robustness"),
    module,
    variables,
    batches,
    device,
    config.chips if level.is_random else 1,
    calibration=calibration,
    chips_per_step=config.chips_per_step,
    faults=interop.load_faults(level.fault_map) if level.fault_map else None,
  )


def check_chips(
  experiment: experiment_lib.Experiment, workdir: pathlib.Path
) -> None:
  """Checks that the scenarios' devices can hold and read the nets.

  As long as the found net's widths are not known, the widest one is checked.

  Raises:
    InputError: a sense amplifier for a column of several tiles, or measured
      faults that do not fit.
  """
  for step in todo_list(experiment.config):
    level = step.level
    if level is None or not (level.fault_map or level.device.adc_bits == 1):
      continue
    if (workdir / "search" / "result.json").exists():
      module = train.net_module(step.net, experiment, workdir)
    else:
      module = train.widest_module(step.net, experiment)
    faults = interop.load_faults(level.fault_map) if level.fault_map else None
    params = variables_lib.shapes(module, experiment.splits.image_shape)
    device = dataclasses.replace(level.device, adc_range="full_scale")

    def program(
      key, params, device=device, bits=module.weight_bits, faults=faults
    ):
      variables = {"params": params}
      return crossbar.program(key, variables, device, bits, faults=faults)

    try:
      jax.eval_shape(program, jax.random.key(0), params["params"])
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
  return files.read_json(path)


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


def _describe(net, module, variables, experiment):
  """A net without its sweeps: its size, and its accuracy without defects."""
  config = experiment.config.robustness
  test, limit = experiment.splits.test, config.images or None
  batches = experiment.evaluation_stream(test, config.batch_size, limit)
  kind = nets.parse(net).kind
  size = {name: None for name in cost.Cost._fields}
  if kind == nets.BINARY:
    net_cost = experiment.cost(module.max_widths)
    size = {name: int(amount) for name, amount in net_cost._asdict().items()}
  elif kind == nets.INT8:
    device = experiment.device
    size |= cost.stored_weights(variables["params"], device.tile_shape)
    # Slices of a weight lie in arrays of their own.
    size["arrays"] *= crossbar.cell_slices(device, module.weight_bits)[0]
  return {
    "widths": list(module.max_widths),
    "weight_bits": _WEIGHT_BITS[kind],
    **size,
    "test_images": limit or len(test),
    "clean": robustness.ideal_accuracy(module, variables, batches),
    "sweeps": {},
  }
