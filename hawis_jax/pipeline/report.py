"""Stage 5: report/index.html, its figures as files, and report/report.json.

`collect` turns the results into report.json's content; figures and page are
made of nothing else, and the same content gives the same bytes.
"""

from collections.abc import Sequence
import dataclasses
import datetime
import hashlib
import json
import pathlib
import re
import shlex
import sys

from hawis_jax import errors
from hawis_jax.config import settings
from hawis_jax.data import arrays
from hawis_jax.networks import net_names
from hawis_jax.pipeline import results
from hawis_jax.pipeline import robustness
from hawis_jax.pipeline import tally
from hawis_jax.pipeline.experiment import Experiment
from hawis_jax.report import facts
from hawis_jax.report import figures
from hawis_jax.report import render
from hawis_jax.report import style
from hawis_jax.robustness import scenarios
from hawis_jax.runtime import storage
from hawis_jax.runtime.metrics import Metrics
from hawis_jax.runtime.metrics import read


def run(
  experiment: Experiment,
  workdir: pathlib.Path,
  metrics: Metrics,
  argv: Sequence[str] = (),
) -> None:
  """Writes the report, unless there is one of just these results.

  It ends with a table of the nets, and where the page is.

  Args:
    experiment: of the run.
    workdir: of the run.
    metrics: of the run.
    argv: the command and its arguments; none: those of the process.

  Raises:
    InputError: a result is missing or damaged; the report can't be written.
  """
  if not metrics.recording:
    return
  folder = workdir / "report"
  metrics.flush()
  content = collect(experiment, workdir, argv)
  if not _is_finished(folder, content["digest"]):
    _write(folder, content)
  for warning in facts.warnings(content):
    metrics.say(f"warning: {warning}")
  metrics.say(facts.summary(content).to_string(index=False))
  metrics.say(f"report  {folder / 'index.html'}")


def _write(folder, content):
  drawn = figures.draw(content)
  files = render.files(drawn)
  files["index.html"] = render.render(content, drawn).encode()
  content["files"] = {
    name: hashlib.sha256(file).hexdigest() for name, file in files.items()
  }
  with storage.write_errors(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").unlink(missing_ok=True)
    for name in figures.NAMES:
      for kind in figures.Drawn._fields:
        (folder / f"{name}.{kind}").unlink(missing_ok=True)
    for name, file in files.items():
      storage.write_bytes(folder / name, file)
  # Last: its digest says that the rest is complete.
  storage.write_record(folder / "report.json", content)


def _is_finished(folder, digest):
  try:
    content = storage.read_record(folder / "report.json")
  except errors.InputError:  # missing, damaged or changed
    return False
  return content.get("digest") == digest and all(
    (folder / name).exists() and storage.digest(folder / name) == sha256
    for name, sha256 in content["files"].items()
  )


def collect(
  experiment: Experiment, workdir: pathlib.Path, argv: Sequence[str] = ()
) -> dict:
  """Returns the content of report.json, but for `files`.

  Raises:
    InputError: a result is missing or damaged.
  """
  swept = results.load_robustness(workdir)["nets"]
  if not swept:
    raise errors.InputError(
      f"{workdir / 'robustness'}: got no net, needed is one; run --stages "
      "robustness first"
    )
  config, geometry = experiment.config, experiment.geometry
  source = results.load_source(workdir)
  theirs = config
  if source:
    theirs = results.saved_config(results.source_of(workdir))
  main = facts.main_net(swept, config.train.nets)
  swept = facts.in_order(swept, main)
  found = None  # no net needed a search
  if experiment.space:
    result = results.load_search(workdir)
    found = facts.search(result, results.load_evaluations(workdir))
    # A run that measures another one's nets has that one's search, and costs.
    hardware = settings.hardware(theirs)
    found["device"] = theirs.device.preset
    found["hardware"] = _hardware(hardware)
    found["counts_alike"] = hardware == geometry.hardware
  known = {
    name: experiment.widths[name]
    for name in net_names.vector_names(
      config.network.depth, settings.shares(config)
    )
    if name in experiment.widths
  }
  curves, measured = _metrics(workdir / "metrics.jsonl", swept)
  if source:
    curves, _ = _metrics(results.source_of(workdir) / "metrics.jsonl", swept)
  command = _command(argv or sys.argv)
  inputs = {
    "config": json.loads(json.dumps(settings.flatten(config))),
    "data": {
      "name": experiment.splits.name,
      "version": experiment.splits.version,
      "test_images": len(experiment.splits.test),
      **_digests(config, experiment.splits),
    },
    "device": dataclasses.asdict(experiment.device),
    "effects": settings.own_effects(config),
    "hardware": {
      **_hardware(geometry.hardware),
      "products": list(geometry.names),
    },
    "main_net": main,
    "search": found,
    "space": found and [list(layer) for layer in experiment.space.choices],
    "vectors": facts.vectors(swept, found and found["found"], known, geometry),
    "curves": curves,
    "group_starts": _group_starts(config),
    "chance": 1 / experiment.splits.num_classes,
    "trained_on": _trained_on(theirs, swept),
  }
  if source:
    inputs["source"] = {**source, "seed": theirs.seed}
  labels = _labels(config)
  identity = json.dumps([facts.FORMAT, inputs, swept], sort_keys=True)
  rows = facts.accuracy(
    swept, inputs["chance"], config.robustness.failed_below, labels
  )
  harshest = facts.harshest(rows, swept, main)

  def load_correct(row):
    images = swept[row["net"]]["test_images"]
    return tally.load_correct(workdir / "robustness", row, images)

  return {
    "format": facts.FORMAT,
    "digest": hashlib.sha256(identity.encode()).hexdigest(),
    "name": _name(command, workdir),
    "measured": measured,
    "command": command,
    "versions": _versions(swept),
    **inputs,
    "nets": {
      name: facts.net(
        result, inputs["vectors"][net_names.parse(name).widths]["cost"]
      )
      for name, result in swept.items()
    },
    "comparisons": facts.comparisons(rows, main, load_correct),
    "harshest": harshest,
    "accuracy": [_without_chips(row, harshest) for row in rows],
    "missing": _missing(config, swept, labels),
  }


def _hardware(hardware):
  """What costs depend on beside widths."""
  return {
    "technology": hardware.technology.name,
    "tile_shape": list(hardware.tile_shape),
    "converter_bits": hardware.converter_bits,
    "sensed": hardware.may_sense(binarized=True),
    "duplication": hardware.duplication,
    "activity": hardware.activity,
  }


def _without_chips(row, harshest):
  """A row; its chips are drawn where it is of a harshest severity."""
  if row["chips"] > 1 and harshest.get(row["scenario"]) == row["severity"]:
    return row
  return {name: value for name, value in row.items() if name != "accuracy"}


def _versions(swept):
  """Those that the nets were measured with, which may be several."""
  times = [time for net in swept.values() for time in net["versions"]]
  return {
    package: ", ".join(sorted({time[package] for time in times}))
    for package in times[0]
  }


def _group_starts(config):
  """First layer of every group of blocks, from 1; the first has the stem."""
  groups = settings.num_groups(config)
  size = (config.network.depth - 2) // groups
  return [1, *(2 + group * size for group in range(1, groups))]


def _digests(config, splits):
  """Which images these are: of a file its name, of any set two digests."""
  is_file = splits.name == arrays.NAME
  name = {"file": pathlib.Path(config.data.data_dir).name} if is_file else {}
  told = splits.facts()
  return name | {part: told[part] for part in ("train_digest", "test_digest")}


def _trained_on(config, swept):
  """Effects of the chips that nets are trained on, in words; None: no net is.

  Args:
    config: of the run that trained them.
    swept: results of the robustness stage.
  """
  on_chips = [net for net in swept if net_names.parse(net).on_chips]
  if not on_chips:
    return None
  section = config.hardware_aware
  base, own = settings.device(config), settings.own_effects(config)
  field, told = "config.hardware_aware.scenarios", []
  drawn = [dict(one) for one in section.scenarios or config.search.scenarios]
  others = [one for one in drawn if set(one) != {scenarios.DEVICE}]
  # As `settings` has it: beside others, a device without effects is none.
  for given in drawn if own or not others else others:
    label, written = _in_words(given, given, base, own, field)
    # Only here is the device's own share no number of a table.
    told.append(f"{label} ({written})" if scenarios.DEVICE in given else label)
  return {
    "scenarios": told,
    "most_severity": section.most_severity,
    "chips": section.chips,
    "ramp": list(section.ramp),
    "worst": section.worst,
  }


def _labels(config):
  """What every severity has, in words, see `facts.accuracy`."""
  base, own, labels = settings.device(config), settings.own_effects(config), {}
  field = "config.robustness.scenarios"
  for given, swept in zip(
    config.robustness.scenarios, settings.sweeps(config), strict=True
  ):
    effect = swept.key.rpartition(": ")[2]
    for place, severity in enumerate(swept.severities):
      values = {effect: severity.value}  # first the one that is drawn
      for name, value in given.items():
        if name not in (*scenarios.WORDS, effect):
          is_swept = isinstance(value, tuple | list)
          values[name] = value[place] if is_swept else value
      told = _in_words(given, values, base, own, field)
      told = dict(zip(("label", "effects"), told, strict=True))
      labels[swept.key, severity.value] = told
  return labels


def _in_words(given, values, base, own, field):
  """(All of a scenario, the same with the device's own effects written out).

  Args:
    given: the scenario.
    values: of its fields at a severity.
    base: the device without effects.
    own: severities of its own effects.
    field: for errors.
  """
  values = {
    name: value
    for name, value in values.items()
    # Measured faults alone are what is drawn, at a severity of 0.
    if name not in scenarios.WORDS or (name, value) == ("fault_map", 0.0)
  }
  _, own = scenarios.of_preset(given, base, own, field)
  written = scenarios.with_own(values, own, field)
  words = [given[scenarios.PRESET]] if scenarios.PRESET in given else []
  words += scenarios.beside(given)
  return (
    _label(given.get("name"), style.effects(values), words),
    _label(None, style.effects(written) or "none", words),
  )


def _label(name, effects, words):
  if name:
    return f"{name}: {', '.join([effects, *words])}"
  return f"{', '.join(words)}: {effects}" if words else effects


def _missing(config, swept, labels):
  """What of the sweeps is not there yet, in words."""
  missing = []
  for step in robustness.measurements(config):
    name, result = style.net_name(step.net), swept.get(step.net)
    if step.severity is None:
      missing += [f"{name}: everything"] * (result is None)
    elif result is not None:
      if step.severity.value not in robustness.severities(result, step):
        severity = labels[step.scenario, step.severity.value]["label"]
        if len(config.robustness.batch_norm) > 1:
          severity += f" ({step.statistics} statistics)"
        missing.append(f"{name}: {severity}")
  return missing


def _command(argv):
  program = pathlib.Path(argv[0])
  start = [argv[0]]
  if program.parts[-2:] == ("hawis_jax", "main.py"):
    start = ["python", "-m", "hawis_jax.main"]
  return shlex.join([*start, *argv[1:]])


def _name(command, workdir):
  """Name of the config file; else of the work directory."""
  given = re.search(r"--?config[= ]([^\s:]+)", command)
  return pathlib.Path(given.group(1)).stem if given else workdir.resolve().name


def _metrics(path, names):
  """({stage: {metric drawn: {"step", "value"}}}, when the last line came)."""
  curves = {stage: {} for stage in ("pretrain", *(f"train/{n}" for n in names))}
  last = None
  for line in read(path):
    last = line["time"]
    for metric, value in line["values"].items():
      is_drawn = metric == "loss" or metric.startswith("accuracy")
      if line["stage"] in curves and is_drawn:
        points = curves[line["stage"]].setdefault(
          metric, {"step": [], "value": []}
        )
        points["step"].append(line["step"])
        points["value"].append(value)
  if last is not None:
    last = datetime.datetime.fromtimestamp(last, datetime.UTC)
  measured = last.isoformat(" ", "minutes") if last else "no metrics"
  return {stage: curve for stage, curve in curves.items() if curve}, measured
