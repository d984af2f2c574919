"""Stage 4: accuracy of every trained net on chips, over levels of defects.

All nets meet the same chips: chip s has the same key for every net, scenario
and level.
"""

import dataclasses
import pathlib

import numpy as np

from hawis_jax import cost
from hawis_jax import errors
from hawis_jax import experiment as experiment_lib
from hawis_jax import files
from hawis_jax import metrics as metrics_lib
from hawis_jax import nets
from hawis_jax import robustness
from hawis_jax import train

# Swept one at a time, everything else ideal; levels are in the config.
SCENARIOS = ("stuck_off", "stuck_on", "variation")


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
  todo = _todo(config)
  done = [step for step in todo if _is_done(result, *step)]
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
  for step, (net, scenario, level) in enumerate(todo, 1):
    if (net, scenario, level) in done:
      continue
    if loaded != net:
      module, variables = train.load(net, experiment, workdir)
      loaded = net
    if net not in result["nets"]:
      result["nets"][net] = _describe(net, module, variables, experiment)
      files.write_json(path, result)
    if scenario is None:
      progress.report(step, {"accuracy": result["nets"][net]["clean"]})
      continue
    entry = result["nets"][net]
    accuracy = robustness.evaluate_chips(
      experiment.key("robustness"),
      module,
      variables,
      batches,
      dataclasses.replace(experiment.device, **{scenario: level}),
      config.robustness.chips,
      calibration=calibration,
      chips_per_step=config.robustness.chips_per_step,
    )
    entry["sweeps"].setdefault(scenario, []).append(
      {
        "level": level,
        **robustness.summarize(accuracy),
        "accuracy": accuracy.astype(np.float64).tolist(),
      }
    )
    files.write_json(path, result)
    progress.report(step, {"accuracy": float(accuracy.mean())})
  return result


def load_result(workdir: pathlib.Path) -> dict:
  """Returns the sweep's result.

  Raises:
    InputError: the stage has not begun, or its file is damaged.
  """
  path = workdir / "robustness" / "result.json"
  if not path.exists():
    raise errors.InputError(f"{path}: missing; run --stages robustness first")
  return files.read_json(path)


def _todo(config):
  """(net, scenario, level) of every measurement; float nets meet no chips."""
  steps = []
  for net in config.train.nets:
    steps.append((net, None, None))
    if nets.parse(net).kind != nets.FLOAT:
      steps += [
        (net, scenario, level)
        for scenario in SCENARIOS
        for level in config.robustness[scenario]
      ]
  return steps


def _is_done(result, net, scenario, level):
  if scenario is None:
    return net in result["nets"]
  sweeps = result["nets"].get(net, {}).get("sweeps", {})
  return any(entry["level"] == level for entry in sweeps.get(scenario, []))


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
  elif kind == nets.INT8:  # one pair of analog cells a weight
    tile_shape = experiment.device.tile_shape
    size |= cost.stored_weights(variables["params"], tile_shape)
  return {
    "widths": list(module.max_widths),
    "weight_bits": _WEIGHT_BITS[kind],
    **size,
    "test_images": limit or len(test),
    "clean": robustness.ideal_accuracy(module, variables, batches),
    "sweeps": {},
  }
