"""Stage 5: report/index.html, report/*.png and report/report.json.

`collect` turns the results into report.json's content; figures and page are
made of nothing else.
"""

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import pathlib
import platform
import re
import shlex
import sys

from scipy import stats

from hawis_jax import config as config_lib
from hawis_jax import errors
from hawis_jax import experiment as experiment_lib
from hawis_jax import files
from hawis_jax import intervals
from hawis_jax import metrics as metrics_lib
from hawis_jax import nets
from hawis_jax import search
from hawis_jax import sweep
from hawis_jax.report import breakdown
from hawis_jax.report import figures
from hawis_jax.report import looks
from hawis_jax.report import outcome
from hawis_jax.report import page
from hawis_jax.report import wording

_FORMAT = 7  # of report.json and the page; a new one remakes old reports
_ORDER = ("found", "uniform", "baseline_1x")  # others follow


def run(
  experiment: experiment_lib.Experiment,
  workdir: pathlib.Path,
  metrics: metrics_lib.Metrics,
) -> None:
  """Writes the report, unless there is one of just these results.

  Raises:
    InputError: a result is missing or damaged; the report can't be written.
  """
  if not metrics.recording:
    return
  folder = workdir / "report"
  metrics.flush()
  content = collect(experiment, workdir)
  if _is_finished(folder, content["digest"]):
    return
  pictures = figures.draw(content)
  content["files"] = ["index.html", *pictures]
  text = page.render(content, pictures)
  with files.write_errors(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").unlink(missing_ok=True)
    for name in figures.FILES:
      if name not in pictures:
        (folder / name).unlink(missing_ok=True)
    for name, data in {**pictures, "index.html": text.encode()}.items():
      files.write_bytes(folder / name, data)
  # Last: its digest says that the rest is complete.
  files.write_json(folder / "report.json", content)
  metrics.say(f"report  {folder / 'index.html'}")


def _is_finished(folder, digest):
  try:
    content = files.read_json(folder / "report.json")
  except errors.InputError:  # missing or damaged
    return False
  return content.get("digest") == digest and all(
    (folder / name).exists() for name in content["files"]
  )


def collect(
  experiment: experiment_lib.Experiment, workdir: pathlib.Path
) -> dict:
  """Returns the content of report.json, but for `files`.

  Raises:
    InputError: a result is missing or damaged.
  """
  results = sweep.load_result(workdir)["nets"]
  if not results:
    raise errors.InputError(
      f"{workdir / 'robustness'}: got no net, needed is one; run --stages "
      "robustness first"
    )
  config = experiment.config
  reference = _reference(config.train.nets, results)
  order = (reference, *_ORDER)
  # Binary nets first, then 8-bit, then float ones.
  ranked = sorted(
    results,
    key=lambda n: (results[n]["weight_bits"], (*order, n).index(n)),
  )
  results = {name: results[name] for name in ranked}
  found = None  # no net needed a search
  if experiment.space:
    found = outcome.collect(search.load_result(workdir))
  command = _command()
  inputs = {
    "config": json.loads(json.dumps(config_lib.flatten(config))),
    "data": {
      "name": experiment.splits.name,
      "version": experiment.splits.version,
      "test_images": len(experiment.splits.test),
    },
    "device": dataclasses.asdict(experiment.device),
    "hardware": breakdown.hardware(experiment),
    "reference": reference,
    "search": found,
    "space": found and [list(layer) for layer in experiment.space.choices],
    "vectors": breakdown.vectors(experiment, results, found and found["found"]),
    "curves": _curves(
      workdir / "metrics.jsonl", ["pretrain", *(f"train/{n}" for n in results)]
    ),
    "stage_starts": _stage_starts(
      config_lib.num_stages(config), config.network.depth - 1
    ),
    "chance": 1 / experiment.splits.num_classes,
  }
  identity = json.dumps([_FORMAT, inputs, results], sort_keys=True)
  content = {
    "digest": hashlib.sha256(identity.encode()).hexdigest(),
    "name": _name(command, workdir),
    "made": datetime.datetime.now(datetime.UTC).isoformat(" ", "minutes"),
    "command": command,
    "versions": _versions(),
    **inputs,
    "nets": {
      name: _net(result, inputs["vectors"][nets.parse(name).widths]["cost"])
      for name, result in results.items()
    },
    "comparisons": _comparisons(reference, results),
    "missing": _missing(config, results),
  }
  content["headline"] = wording.headline(content)
  return content


def _reference(names, results):
  """The net that the others are compared with; None: none was on chips.

  It is the found net, else the first binary one of `names`.
  """
  ranked = sorted(
    (name for name, result in results.items() if result["sweeps"]),
    key=lambda n: (
      n != "found",
      results[n]["weight_bits"] != 1,
      (*names, n).index(n),
    ),
  )
  return ranked[0] if ranked else None


def _stage_starts(num_stages, num_layers):
  """First layer of every stage, counted from 1; the first has the stem."""
  per_stage = (num_layers - 1) // num_stages
  return [1, *(2 + stage * per_stage for stage in range(1, num_stages))]


def _missing(config, results):
  """What of the sweeps is not there yet, in words."""
  missing = []
  for step in sweep.todo_list(config):
    name = looks.net_name(step.net)
    if step.net not in results:
      if step.level is None:
        missing.append(f"{name}: everything")
    elif step.level is not None:
      if step.level.value not in _by_level(results[step.net], step.scenario):
        level = looks.level_text(step.scenario, step.level.value)
        missing.append(f"{name}: {level}")
  return missing


def _command():
  program = pathlib.Path(sys.argv[0])
  start = [sys.argv[0]]
  if program.parts[-2:] == ("hawis_jax", "main.py"):
    start = ["python", "-m", "hawis_jax.main"]
  return shlex.join([*start, *sys.argv[1:]])


def _name(command, workdir):
  """Name of the config file; else of the work directory."""
  given = re.search(r"--?config[= ]([^\s:]+)", command)
  return pathlib.Path(given.group(1)).stem if given else workdir.resolve().name


def _versions():
  versions = {"python": platform.python_version()}
  for package in ("hawis_jax", "jax", "flax", "numpy"):
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      versions[package] = "not installed"
  return versions


def _curves(path, stages):
  """{stage: {metric drawn: {"step", "value"}}}, stages in order."""
  lines = path.read_text().splitlines() if path.exists() else []
  curves = {stage: {} for stage in stages}
  for line in map(json.loads, lines):
    if line["stage"] not in curves:
      continue
    for metric, value in line["values"].items():
      if metric == "loss" or metric.startswith("accuracy"):
        points = curves[line["stage"]].setdefault(
          metric, {"step": [], "value": []}
        )
        points["step"].append(line["step"])
        points["value"].append(value)
  return {stage: curve for stage, curve in curves.items() if curve}


def _by_level(result, scenario):
  """{level: entry} of one sweep, ascending."""
  entries = result.get("sweeps", {}).get(scenario, [])
  return {e["level"]: e for e in sorted(entries, key=lambda e: e["level"])}


def _net(result, costs):
  """What is shown of one net: `result` with a column a statistic, and costs.

  Args:
    result: of the sweep.
    costs: of a 1-bit net of these widths.
  """
  is_binary = result["weight_bits"] == 1
  images = result["test_images"]
  hits = stats.binomtest(round(result["clean"] * images), images)
  columns = (
    "level",
    "chips",
    "mean",
    "ci95",
    "std",
    "median",
    "p5",
    "cvar",
    "worst",
    "best",
    "intervals",
    "standard_errors",
  )
  return {
    **{name: cost if is_binary else None for name, cost in costs.items()},
    **result,
    "clean_ci95": list(hits.proportion_ci(method="wilson")),
    "sweeps": {
      scenario: {
        column: [e[column] for e in _by_level(result, scenario).values()]
        for column in columns
      }
      for scenario in result["sweeps"]
    },
  }


def _comparisons(reference, results):
  """Paired differences reference - rival: every rival, scenario and level."""
  comparisons = []
  for rival in (name for name in results if name != reference):
    for scenario in results[reference]["sweeps"] if reference else ():
      theirs = _by_level(results[rival], scenario)
      for level, entry in _by_level(results[reference], scenario).items():
        # Without random effects there is one chip: nothing to compare.
        if level in theirs and entry["chips"] > 1:
          comparisons.append(
            {
              "rival": rival,
              "scenario": scenario,
              "level": level,
              **intervals.paired_difference(
                entry["accuracy"], theirs[level]["accuracy"]
              ),
            }
          )
  return comparisons
