"""Stage 4: accuracy of every trained net on chips, over severities of defects.

All nets meet the same chips: chip s has the same key for every net, statistics,
scenario and severity.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

from flax import linen as nn
from flax import traverse_util
import jax
import ml_collections
import numpy as np

from hawis_jax import cost
from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax import interop
from hawis_jax.config import settings
from hawis_jax.networks import net_names
from hawis_jax.networks import net_variables
from hawis_jax.pipeline import nets
from hawis_jax.pipeline import provenance
from hawis_jax.pipeline import results
from hawis_jax.pipeline.experiment import Experiment
from hawis_jax.pipeline.tally import Tally
from hawis_jax.robustness import calibration
from hawis_jax.robustness import evaluation
from hawis_jax.robustness import monte_carlo
from hawis_jax.robustness import scenarios
from hawis_jax.robustness import statistics
from hawis_jax.runtime import distributed
from hawis_jax.runtime import preemption
from hawis_jax.runtime import sharding
from hawis_jax.runtime.metrics import Metrics


class Measurement(NamedTuple):
  """One measurement of the stage.

  Attributes:
    net: its name.
    statistics: one of `robustness.batch_norm`; None: without defects.
    scenario: key of the scenario; None: without defects.
    severity: of the scenario; None: without defects.
  """

  net: str
  statistics: str | None = None
  scenario: str | None = None
  severity: scenarios.Severity | None = None

  @property
  def name(self) -> list:
    """What JSON holds of a measurement at a severity."""
    return [self.net, self.statistics, self.scenario, self.severity.value]


def run(
  experiment: Experiment, workdir: pathlib.Path, metrics: Metrics
) -> None:
  """Sweeps what is left of the nets into robustness/result.json.

  The file is rewritten after every severity, whose table of what is correct is
  written first, and partial.json after every chunk of chips, so an interrupted
  sweep loses a chunk at most.
  """
  config = experiment.config.robustness
  path = results.robustness_path(workdir)
  result = distributed.on_first(lambda: _stored(workdir))
  steps = measurements(experiment.config)
  done = [step for step in steps if _is_done(result, step)]
  if len(done) == len(steps):
    return
  most = config.max_chips if config.target_ci else config.chips
  ends = np.cumsum([_chips(step, most) for step in steps]).tolist()
  partial = path.with_name("partial.json")
  start = sum(_chips(step, most) for step in done)
  left = [step for step in steps if step not in done]
  following = next((step for step in left if step.severity is not None), None)
  if following:
    start += distributed.on_first(
      lambda: Tally.saved_chips(partial, following.name)
    )
  progress = metrics.stage("robustness", total=ends[-1], start=start)
  images = experiment.unpadded(experiment.splits.test, config.images or None)
  loaded = None
  for step, end in zip(steps, ends, strict=True):
    if step in done:
      continue
    if loaded != step.net:
      trained = results.load_net(step.net, experiment, workdir)
      loaded, having = step.net, None
    if step.net not in result["nets"]:
      result["nets"][step.net] = _describe(
        step.net, trained, experiment, workdir
      )
    versions = result["nets"][step.net]["versions"]
    if provenance.versions() not in versions:
      versions.append(provenance.versions())
    if step.severity is None:
      distributed.on_first(lambda: results.write_robustness(workdir, result))
      continue
    if having != step.statistics:
      on_chips, having = trained, step.statistics
      if having == "design":
        design = nets.design_statistics(*trained, experiment)
        on_chips = trained._replace(variables=design)
    first = end - _chips(step, most)
    tally = Tally(
      partial,
      step.name,
      [
        results.ROBUSTNESS_FORMAT,
        experiment.config.seed,
        jax.default_backend(),
        net_variables.digest(on_chips.variables),
      ],
      num_images=len(images[1]),
    )

    def show(chips, tally=tally, first=first):
      known = {"accuracy": tally.accuracy.mean()} if tally.count else {}
      progress.show(first + chips, known)

    chunks = _evaluate(tally, step, on_chips, images, experiment, show)
    for _ in _named(step, chunks):
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
    sweeps = result["nets"][step.net]["sweeps"].setdefault(having, {})
    sweeps.setdefault(step.scenario, []).append(
      {"severity": step.severity.value, **tally.finish()}
    )
    distributed.on_first(lambda: results.write_robustness(workdir, result))
    tally.remove_saved()


def jobs(
  experiment: Experiment, workdir: pathlib.Path
) -> Iterator[Callable[[], Any]]:
  """Yields what compiles the stage's programs, of the nets that are known."""
  config = experiment.config.robustness

  def compile_(step):
    module = results.net_module(step.net, experiment, workdir)
    mesh = sharding.evaluation_mesh(_at_once(step, config))
    plan(step, module, experiment, mesh, config.memory_gb * 1e9)

  kinds, stored = {}, _stored(workdir)
  for step in measurements(experiment.config):
    if step.severity and not _is_done(stored, step):
      # Of a program that depends on which effects there are.
      leaves, structure = jax.tree.flatten(step.severity.device)
      kinds[(*step[:3], structure, *map(bool, leaves))] = step
  for step in kinds.values():
    yield functools.partial(compile_, step)


def _at_once(step, config):
  """Chips that the engine is asked for at first."""
  device = step.severity.device
  # One ideal chip costs less than the program of a chunk of one.
  is_ideal = crossbar.without_effects(device) == device
  return config.chips if step.severity.is_random or is_ideal else 1


def plan(
  step: Measurement,
  module: nn.Module,
  experiment: Experiment,
  mesh: jax.sharding.Mesh,
  memory: float,
) -> monte_carlo.Plan:
  """Returns the compiled programs of a measurement, from shapes alone.

  Args:
    step: with a severity.
    module: the net.
    experiment: of the run.
    mesh: of `sharding.evaluation_mesh`.
    memory: that they may take of a device [bytes]; 0: all that it has.
  """
  config, shape = experiment.config.robustness, experiment.splits.image_shape
  severity = step.severity
  count = config.images or len(experiment.splits.test)
  images = jax.ShapeDtypeStruct((count, *shape), np.uint8)
  net = jax.eval_shape(
    lambda net: calibrated(experiment, severity, module, net),
    net_variables.shapes(module, shape),
  )
  setting = make_setting(experiment, severity, module, net, step.statistics)
  shared = jax.eval_shape(lambda: monte_carlo.shared_variables(setting, images))
  limits = monte_carlo.Limits(config.chips_per_step, config.batch_size, memory)
  is_counted = severity.device.adc_bits > 1
  return monte_carlo.make_plan(
    setting, shared, images, _at_once(step, config), mesh, limits, is_counted
  )


def _stored(workdir):
  """What was measured before."""
  if results.robustness_path(workdir).exists():
    return results.load_robustness(workdir)
  return {"format": results.ROBUSTNESS_FORMAT, "nets": {}}


def _chips(step, most):
  """At most, of one measurement; a net by itself counts as none."""
  if step.severity is None:
    return 0
  return most if step.severity.is_random else 1


def _evaluate(tally, step, trained, images, experiment, show):
  """Adds a severity's chips to its tally; yields after every chunk of them."""
  config, severity = experiment.config.robustness, step.severity
  module = trained.module
  variables = calibrated(experiment, severity, module, trained.variables)
  setting = make_setting(
    experiment, severity, module, variables, step.statistics
  )
  limits = monte_carlo.Limits(
    config.chips_per_step, config.batch_size, config.memory_gb * 1e9
  )
  wanted = config.chips if severity.is_random else 1
  clipped = {}  # of a chunk; a sense amplifier has no range
  counts = clipped.update if severity.device.adc_bits > 1 else None
  while True:
    start = tally.count
    chunks = monte_carlo.classify(
      experiment.key("robustness"),
      setting,
      *images,
      range(start, max(wanted, _at_once(step, config))),
      limits=limits,
      progress=functools.partial(_show, show, start, wanted),
      clipped=counts,
    )
    for correct in chunks if start < wanted else ():
      tally.add(correct[: wanted - start], clipped)
      yield
      if tally.count == wanted:
        break
    if not (config.target_ci and severity.is_random):
      return
    # Of these chips alone: an interrupted run may hold more already.
    before, accuracy = wanted, tally.accuracy[:wanted]
    wanted = statistics.chips_needed(
      accuracy, config.target_ci, config.max_chips
    )
    if wanted <= before:
      return


def _show(show, start, wanted, chips):
  """Shows how many chips are done; an ideal chunk has more than are wanted."""
  show(min(start + chips, wanted))


def _named(step, chunks):
  """Yields from chunks; a measurement is named in their errors."""
  try:
    yield from chunks
  except errors.InputError as error:
    raise errors.InputError(
      f"config.robustness.scenarios, {step.scenario} at {step.severity.value}, "
      f"net {step.net}, {step.statistics} statistics: {error}"
    ) from error


def calibrated(
  experiment: Experiment,
  severity: scenarios.Severity,
  module: nn.Module,
  variables: dict,
) -> dict:
  """Returns a net's variables, with what its converters are set to."""
  device, images = severity.device, None
  if not device.adc_bits:
    return variables
  if device.adc_range == "calibrated":
    images = nets.calibration_images(experiment)[0]
  return calibration.calibrate_converters(module, variables, images, device)


def make_setting(
  experiment: Experiment,
  severity: scenarios.Severity,
  module: nn.Module,
  variables: dict,
  statistics: str,
) -> monte_carlo.Setting:
  """Returns what chips of a severity share.

  Args:
    experiment: of the run.
    severity: of a scenario.
    module: the net.
    variables: of `calibrated`.
    statistics: that it has on chips; those of "design" are in `variables`.
  """
  config = experiment.config.robustness
  return monte_carlo.Setting(
    module,
    variables,
    severity.device,
    interop.load_faults(severity.fault_map) if severity.fault_map else None,
    severity.layers,
    nets.calibration_images(experiment) if statistics == "chip" else None,
    severity.placing,
    statistics == "fixed" and config.compensation == "global",
  )


def check_chips(experiment: Experiment, workdir: pathlib.Path) -> None:
  """Checks that the scenarios' devices can hold and read the nets.

  As long as the found net's widths are not known, the widest one is checked.

  Raises:
    InputError: a sense amplifier where it can't read, measured faults that do
      not fit, or layers that there are not.
  """
  config = experiment.config.robustness
  for step in measurements(experiment.config):
    severity = step.severity
    if step.statistics != config.batch_norm[0] or not (
      severity.fault_map
      or severity.layers
      or severity.placing
      or severity.device.adc_bits == 1
    ):
      continue
    if results.search_path(workdir).exists():
      module = results.net_module(step.net, experiment, workdir)
    else:
      module = nets.module(step.net, experiment)
    faults = (
      interop.load_faults(severity.fault_map) if severity.fault_map else None
    )
    variables = net_variables.shapes(module, experiment.splits.image_shape)
    device = dataclasses.replace(severity.device, adc_range="full_scale")

    program = functools.partial(
      crossbar.program,
      device=device,
      bits=net_variables.crossbar_bits(module),
      scales=getattr(module, "weight_scales", None),
      faults=faults,
      layers=severity.layers,
    )
    try:
      if device.adc_bits == 1:
        if "chip" in config.batch_norm:
          raise errors.InputError(
            "adc_bits: got 1, a sense amplifier, with config.robustness."
            f"batch_norm = {config.batch_norm}, allowed are ('fixed',) and "
            "others without 'chip': its threshold folds the normalisation as "
            "it is"
          )
        if config.compensation != "none":
          raise errors.InputError(
            "adc_bits: got 1, a sense amplifier, with compensation = "
            f"{config.compensation!r}, allowed is 'none': it has no sum to be "
            "multiplied"
          )
        fold = functools.partial(calibration.thresholds, module, device=device)
        known = jax.eval_shape(fold, variables)
        variables["converters"] = traverse_util.unflatten_dict(known)
      jax.eval_shape(program, jax.random.key(0), variables)
      if severity.placing:  # which may need more tiles
        known = functools.partial(
          crossbar.known_faults,
          device=device,
          placing=severity.placing,
          bits=net_variables.crossbar_bits(module),
          faults=faults,
          layers=severity.layers,
        )
        jax.eval_shape(known, jax.random.key(0), variables)
    except errors.InputError as error:
      raise errors.InputError(
        f"config.robustness.scenarios, {step.scenario}, net {step.net}: {error}"
      ) from error


def measurements(config: ml_collections.ConfigDict) -> list[Measurement]:
  """Returns every measurement of the stage.

  Float nets meet chips where `robustness.float_nets` says so, and the device
  can hold them: with linear read-out, and one analog cell a weight.
  """
  steps = []
  for net in config.train.nets:
    steps.append(Measurement(net))
    is_float = net_names.parse(net).kind == net_names.FLOAT
    if is_float and not config.robustness.float_nets:
      continue
    steps += [
      Measurement(net, statistics, scenario.key, severity)
      for statistics in config.robustness.batch_norm
      for scenario in settings.sweeps(config)
      for severity in scenario.severities
      if not is_float or _holds_floats(severity.device)
    ]
  return steps


def _holds_floats(device):
  is_read = not crossbar.bit_effects(device)
  return is_read and not device.cell_bits and device.mapping == "differential"


def _is_done(result, step):
  entry = result["nets"].get(step.net)
  if step.severity is None or entry is None:
    return entry is not None
  return step.severity.value in severities(entry, step)


def severities(entry: dict, step: Measurement) -> list[float]:
  """Returns those of a net's entry that are measured as one measurement is."""
  sweeps = entry["sweeps"].get(step.statistics, {})
  return [one["severity"] for one in sweeps.get(step.scenario, [])]


_WEIGHT_BITS = {net_names.BINARY: 1, net_names.INT8: 8, net_names.FLOAT: 32}


def _describe(net, trained, experiment, workdir):
  """A net without its sweeps: its size, and its accuracy without defects."""
  config, module = experiment.config.robustness, trained.module
  test, limit = experiment.splits.test, config.images or None
  batches = experiment.evaluation_stream(
    test, 8 * monte_carlo.block_size(experiment.splits.image_shape), limit
  )
  kind = net_names.parse(net).kind
  size = dict.fromkeys(cost.COUNTS)
  if kind == net_names.BINARY:
    net_cost = experiment.cost(module.max_widths)
    size = {name: int(getattr(net_cost, name)) for name in cost.COUNTS}
  elif kind == net_names.INT8:
    device = experiment.device
    params = trained.variables["params"]
    size |= cost.stored_weights(params, device.tile_shape)
    # Slices of a weight lie in arrays of their own.
    size["arrays"] *= crossbar.cell_slices(device, module.weight_bits)[0]
  return {
    "widths": list(module.max_widths),
    "weight_bits": _WEIGHT_BITS[kind],
    "inputs": provenance.inputs(experiment, workdir, "robustness", net),
    "versions": [],
    "step": results.chosen_step(net, experiment, workdir),
    **size,
    "test_images": limit or len(test),
    "clean": evaluation.ideal_accuracy(module, trained.variables, batches),
    "sweeps": {},
  }
