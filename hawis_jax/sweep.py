"""Stage 4: accuracy of every trained net on chips, over levels of defects.

All nets meet the same chips: chip s has the same key for every net, scenario
and level.
"""

import dataclasses
import pathlib

import numpy as np

from hawis_jax import errors
from hawis_jax import experiment as experiment_lib
from hawis_jax import files
from hawis_jax import metrics as metrics_lib
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
  nets = config.train.nets
  todo = [
    (net, scenario, level)
    for net in nets
    for scenario in SCENARIOS
    for level in config.robustness[scenario]
  ]
  done = [step for step in todo if _find(result, *step)]
  if len(done) == len(todo):
    return result
  progress = metrics.stage("robustness", total=len(todo), start=len(done))
  batches = experiment.evaluation(
    experiment.splits.test, config.robustness.batch_size
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
      result["nets"][net] = _describe(module, variables, batches, experiment)
    entry = result["nets"][net]
    accuracy = robustness.evaluate_chips(
      experiment.key("robustness"),
      module,
      variables,
      batches,
      dataclasses.replace(experiment.device, **{scenario: level}),
      config.robustness.chips,
      levels=config.data.levels,
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


def _find(result, net, scenario, level):
  sweeps = result["nets"].get(net, {}).get("sweeps", {})
  return [e for e in sweeps.get(scenario, []) if e["level"] == level]


def _describe(module, variables, batches, experiment):
  net_cost = experiment.cost(module.max_widths)
  return {
    "widths": list(module.max_widths),
    "arrays": int(net_cost.arrays),
    "macs": int(net_cost.macs),
    "weights": int(net_cost.weights),
    "test_images": int(batches.mask.sum()),
    "clean": robustness.ideal_accuracy(
      module, variables, batches, experiment.config.data.levels
    ),
    "sweeps": {},
  }
