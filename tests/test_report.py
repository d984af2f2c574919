"""The report's numbers against ones computed here from synthetic results."""

import hashlib
from html import parser as html_parser
import io
import json
import re
import sys
import types
from unittest import mock
import zlib

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hawis_jax import cost
from hawis_jax import errors
from hawis_jax.config import settings
from hawis_jax.networks import net_names
from hawis_jax.networks import width_vectors
from hawis_jax.pipeline import report
from hawis_jax.pipeline import results
from hawis_jax.pipeline import tally
from hawis_jax.pipeline.experiment import Experiment
from hawis_jax.pipeline.tally import Tally
from hawis_jax.report import __main__ as command
from hawis_jax.report import compare
from hawis_jax.report import facts
from hawis_jax.report import figures
from hawis_jax.report import render
from hawis_jax.report import style
from hawis_jax.robustness import statistics
from hawis_jax.runtime import storage
from hawis_jax.search import registry
from hawis_jax.search import selection

_FOUND = (24, 40, 32, 48, 40, 32, 56, 96, 64, 80, 96, 64, 112)
_FOUND += (128, 192, 128, 160, 96, 64)
_WIDTHS = {
  **width_vectors.PRESETS,
  "found": _FOUND,
  "uniform": (32,) * 7 + (64,) * 6 + (128,) * 6,
  "baseline_1x": width_vectors.PRESETS["resnet20_1x"],
}
_BITS = {net_names.BINARY: 1, net_names.INT8: 8, net_names.FLOAT: 32}
# Accuracy lost at the greatest severity.
_LOSS = dict(found=0.15, uniform=0.2, baseline_1x=0.4, resnet18_hawis_a=0.1)


def _experiment(**fields):
  config = settings.default()
  config.robustness.batch_norm = ("fixed",)
  fields = {name.replace("__", "."): value for name, value in fields.items()}
  config.update_from_flattened_dict(fields)
  searches, hardware = settings.searches(config), settings.hardware(config)
  geometry = cost.cifar_geometry(20, (8, 8, 1), 32, 10, hardware)
  known = {name: v for name, v in _WIDTHS.items() if name != "found"}
  if config.network.depth == 18:
    geometry = cost.imagenet_geometry("7x7", 64, 32, 10, hardware)
    known["baseline_1x"] = known["resnet18_1x"]
    del known["uniform"]
  splits = dict(name="cifar10", version="3.0.2", num_classes=10)
  splits["facts"] = lambda: {"train_digest": "0a1b", "test_digest": "2c3d"}
  return Experiment(
    config=config,
    splits=types.SimpleNamespace(**splits, test=range(360)),
    space=settings.width_space(config) if searches else None,
    geometry=geometry,
    device=settings.device(config),
    widths=known,
  )


def _sweeps(result):
  """(statistics, scenario, entries) of a net's result."""
  for kind, sweeps in result["sweeps"].items():
    for scenario, entries in sweeps.items():
      yield kind, scenario, entries


def _swept(workdir, rng, experiment):
  """Writes a sweep: chips are more or less lucky, and images hard, for all."""
  config = experiment.config
  result = {"format": results.ROBUSTNESS_FORMAT, "nets": {}}
  luck = rng.normal(0, 0.3, config.robustness.chips)
  ease = rng.uniform(0, 1, 360)
  partial = workdir / "robustness" / "partial.json"
  for net in config.train.nets:
    vector, kind, _ = net_names.parse(net)
    clean, sweeps = round(0.97 * 360) / 360, {}
    for swept in () if kind == "float" else settings.sweeps(config):
      most, sweeps[swept.key] = max(x.value for x in swept.severities), []
      for severity in swept.severities:
        spread = np.exp(luck + rng.normal(0, 0.1, luck.shape))
        lost = _LOSS.get(net, 0.5) * (severity.value / most) ** 1.5 * spread
        chips = np.clip(clean - lost, 0.08, 1)
        chips = chips if severity.is_random else chips[:1]
        measured = Tally(
          partial, [net, "fixed", swept.key, severity.value], [], 360
        )
        hard = ease + rng.normal(0, 0.05, 360)
        measured.add(chips[:, None] > hard)
        sweeps[swept.key].append(
          {"severity": severity.value, **measured.finish()}
        )
    measured = {"fixed": sweeps} if sweeps else {}
    described = dict(test_images=360, clean=clean, sweeps=measured)
    described["versions"] = [{"jax": "0.10.2"}]
    if net == "found":
      described["versions"].append({"jax": "0.11.0"})
    described |= dict(widths=list(_WIDTHS[vector]), weight_bits=_BITS[kind])
    if kind != net_names.FLOAT:
      costs = experiment.exact_costs(_WIDTHS[vector])
      described |= {name: costs[name] for name in cost.COUNTS}
    result["nets"][net] = described
  return result


def _searched(rng, experiment, kind, shares):
  """A result of the search at budgets of some shares of the main one."""
  search, groups, best = experiment.config.search, {}, {}
  for place, name in enumerate((*search.methods, "uniform")):
    groups[name], best[name] = [], []
    # No uniform net is within the least of several budgets.
    for budget, share in enumerate(shares):
      empty = name == "uniform" and budget < len(shares) - 1
      for index in range(0 if empty else 2):
        vector = [
          int(w * share**0.5) - index for w in _WIDTHS.get(name, _FOUND)
        ]
        score = 0.7 - 0.01 * place - 0.002 * index + 0.05 * np.log(share)
        entry = dict(budget=budget, widths=vector, score=score, clean=0.9)
        entry["cost"] = experiment.exact_costs(vector)
        entry["chips"] = (score + rng.normal(0, 0.02, 16)).tolist()
        entry["search_advantage"] = None if name == "uniform" else score - 0.6
        groups[name].append(entry)
      first = None if empty else groups[name][-2]
      # On other chips it scores another way.
      best[name].append(first and {**first, "score": first["score"] - 0.004})
  mean = 0.6 + rng.normal(0, 0.01, (len(shares), search.updates))
  trajectory = {"mean": mean.tolist(), "best": (mean + 0.05).tolist()}
  most = experiment.exact_costs(_FOUND)[cost.KINDS[kind].field]
  return {
    "format": 4,
    "method": search.methods[0],
    "found": list(_FOUND),
    "cost": kind,
    "technology": experiment.config.space.technology,
    "budgets": [1.02 * most * share for share in shares],
    "main_budget": len(shares) - 1,
    "limits": {"latency": 2e-3, "interval": 2.5e-4},
    "evaluations": search.updates * search.proposals,
    "references": search.updates * search.references,
    "distinct": {m: [77 + b for b in range(len(shares))] for m in groups},
    "candidates": groups,
    "best": best,
    "front": selection.front(groups),
    "trajectory": dict.fromkeys(search.methods, trajectory),
  }


def _curves(config):
  stages = [f"train/{net}" for net in config.train.nets]
  for stage in ["pretrain", *stages] if settings.searches(config) else stages:
    names = ("accuracy_max", "accuracy_mean")
    if stage != "pretrain":
      names = ("accuracy", "accuracy_validation")
    for step in range(20, 401, 20):
      left = np.exp(-step / 100)
      values = {"loss": 2.3 * left, "weight_norm": 30.0}
      values |= dict.fromkeys(names, 0.9 - left * 0.5)
      if step % 200:
        values.pop("accuracy_validation", None)
      yield _line(60.0 * step, stage, step, values)


def _line(time, stage, step, values):
  """As `runtime.metrics` writes it."""
  line = {"time": time, "stage": stage, "step": step, "values": values}
  crc = zlib.crc32(json.dumps(line, sort_keys=True).encode())
  return json.dumps({**line, "crc": crc}) + "\n"


def _write(workdir, rng, experiment, kind="arrays", shares=(1.0,)):
  """Writes the results of all stages before the report; returns the sweep's."""
  stages = {"robustness": _swept(workdir, rng, experiment)}
  if experiment.space:
    stages["search"] = _searched(rng, experiment, kind, shares)
  for stage, value in stages.items():
    (workdir / stage).mkdir(exist_ok=True)
    storage.write_record(workdir / stage / "result.json", value)
  (workdir / "metrics.jsonl").write_text("".join(_curves(experiment.config)))
  return stages["robustness"]


class _Page(html_parser.HTMLParser):
  """Checks that tags are closed; collects text, rows of tables, and links."""

  def __init__(self, html):
    super().__init__()
    self.links, self.ids, self.open, self.rows = [], [], [], []
    self.html, self.text, self.labels = html, "", []
    self.feed(html)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    assert tag not in ("link", "iframe", "object", "base", "img")
    assert tag != "script" or not attrs  # it is our own, in the page
    self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href")]
    self.ids += [v for k, v in attrs if k == "id"]
    if tag in ("svg", "table"):  # in a box that scrolls and says what it shows
      assert self.open[-1][1]["class"] == "wide"
    if tag == "svg":
      self.labels.append(self.open[-1][1]["aria-label"])
    if tag == "tr":
      self.rows.append([])
    if tag in ("td", "th"):
      self.rows[-1].append("")
    if tag != "meta":
      self.open.append((tag, dict(attrs)))

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    self.open.pop()

  def handle_endtag(self, tag):
    assert self.open.pop()[0] == tag

  def handle_data(self, data):
    data = data.replace("\u00a0", " ")
    if not self.open or self.open[-1][0] not in ("script", "style", "title"):
      self.text += data
    if self.open and self.open[-1][0] in ("td", "th"):
      self.rows[-1][-1] += data

  def row(self, *start):
    """The first row of a table that begins with some cells."""
    return next(r for r in self.rows if r[: len(start)] == list(start))


def _run(experiment, workdir, draw=figures.draw):
  """Runs the stage; returns report.json's content and the page.

  `draw` None: without figures, which take seconds.
  """
  quiet = dict(flush=lambda: None, say=lambda text: None)
  metrics = types.SimpleNamespace(recording=True, **quiet)
  draw = draw or (lambda content: {})
  with mock.patch.object(figures, "draw", draw):
    report.run(experiment, workdir, metrics)
  content = storage.read_record(workdir / "report" / "report.json")
  return content, _Page((workdir / "report" / "index.html").read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """One report of all nets: (workdir, experiment, sweep, content, page)."""
  workdir = tmp_path_factory.mktemp("digits")
  experiment = _experiment(data__data_dir="<script>alert(1)</script>&")
  swept = _write(workdir, np.random.default_rng(3), experiment)
  return workdir, experiment, swept["nets"], *_run(experiment, workdir)


def test_the_devices_own_effects_are_told(made):
  """Else nobody could say later what "1 x the device's own effects" were."""
  *_, content, page = made
  assert content["effects"] == {"stuck_off": 0.0904, "stuck_on": 0.0175}
  told = facts.own_effects(content)
  assert {*told.split(", ")} == {"9.04 % stuck off", "1.75 % stuck on"}
  assert f"own effects: {told}." in " ".join(page.text.split())


def test_tables_hold_accuracy_of_every_net_and_severity(made):
  workdir, _, swept, content, page = made
  assert list(content["nets"]) == ["found", "uniform", "baseline_1x"]
  for place, (name, net) in enumerate(content["nets"].items()):
    # Wilson's interval, written out.
    n, z, p = 360, stats.norm.ppf(0.975), net["clean"]
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2) / (1 + z**2 / n)
    low, high = 100 * (middle - half), 100 * (middle + half)
    row = page.row(style.net_name(name), "1-bit")
    assert row[-3] == f"{100 * p:.2f} [{low:.2f}, {high:.2f}]"
    bar = 0.1 + 0.5 * (p - 0.1)  # halfway from chance to clean
    assert row[-2] == f"{100 * bar:.2f}"
    assert row[-1] == f"{100 * (0.9 - 0.5 * np.exp(-4)):.2f} (step 400)"
    for _, scenario, entries in _sweeps(swept[name]):
      for entry in entries:
        chips = np.array(entry["accuracy"])
        correct = tally.load_correct(workdir / "robustness", entry, n)
        np.testing.assert_array_equal(correct.mean(1), chips)
        total = statistics.total_interval(correct)
        cell = style.estimate(chips.mean(), total)
        if len(chips) > 1:
          ends = statistics.mean_interval(chips, 0, 1)
          failed = statistics.failed_chips(chips, bar)
          shown = style.estimate(failed["share"], failed["ci95"])
          cell += f"\nover chips {style.brackets(ends)}"
          cell += f"\n5th pct. {100 * np.quantile(chips, 0.05):.2f}"
          cell += f"\nfailed {shown}"
        else:
          cell += "\nall chips alike"
        shown = style.severity(scenario, entry["severity"])
        lines = [r for r in page.rows if r[0] == shown and len(r) == 4]
        assert any(r[1 + place] == cell for r in lines)


def test_costs_are_those_of_the_widths(made):
  _, experiment, _, content, page = made
  for name in content["nets"]:
    net, vector = content["nets"][name], content["vectors"][name]
    costs = experiment.exact_costs(_WIDTHS[name])
    assert {k: net[k] for k in costs} == costs == vector["cost"]
    kinds = ("energy", "latency", "area")
    cells = [style.quantity(k, costs[cost.KINDS[k].field]) for k in kinds]
    row = page.row(style.net_name(name), "1-bit")
    assert row[2] == f"{costs['arrays']:,}" and row[5:8] == cells
    for field in ("energy_joule", "area_m2"):
      parts = [part[field] for part in vector["components"].values()]
      np.testing.assert_allclose(sum(parts), costs[field])
    # The second of the first block: 9 w_2 rows, w_3 columns.
    rows, columns = 9 * _WIDTHS[name][1], _WIDTHS[name][2]
    tiles = -(-rows // 64) * -(-columns // 64)
    used = rows * columns / (4096 * tiles)
    np.testing.assert_allclose(vector["cells"][2], used)
    listed = ", ".join(map(str, _WIDTHS[name]))
    used = 100 * costs["weights"] / (4096 * costs["arrays"])
    assert next(r[2] for r in page.rows if listed in r) == f"{used:.1f}"
  energy = content["vectors"]["found"]["components"]["array"]["energy_joule"]
  share = energy / content["nets"]["found"]["energy_joule"]
  shown = [style.quantity("energy", energy), f"{100 * share:.2f}"]
  assert page.row("array")[1:3] == shown
  # Published vectors of the depth stand beside the nets, and are none.
  published = [n for n, v in content["vectors"].items() if not v["compared"]]
  assert published == [n for n in width_vectors.PRESETS if n[:8] == "resnet20"]


def test_differences_are_paired(made):
  workdir, _, swept, content, page = made
  correct = {
    (net, kind, scenario, entry["severity"]): tally.load_correct(
      workdir / "robustness", entry, 360
    ).astype(float)
    for net, result in swept.items()
    for kind, scenario, entries in _sweeps(result)
    for entry in entries
  }
  assert len(content["comparisons"]) == 2 * (6 + 5 + 7 + 1)
  for row in content["comparisons"]:
    place = facts.place(row)
    gap = correct["found", *place] - correct[row["rival"], *place]
    np.testing.assert_allclose(row["difference"], gap.mean(), atol=1e-12)
    # About as wide as Student's of the dominant factor, and no narrower.
    low, high = row["ci95"]
    of_images = stats.ttest_1samp(gap.mean(0), 0).confidence_interval(0.95)
    assert high - low > 0.98 * (of_images.high - of_images.low)
    assert (row["p"] < 0.05) == (not low <= 0 <= high)
    assert row["over"] == ("chips and images" if len(gap) > 1 else "images")
    cell = style.estimate(gap.mean(), (low, high), style.points)
    is_corrected = row["reason"] == "correction"
    cell += f"\n{row['verdict']}" + " once corrected" * is_corrected
    lines = [r for r in page.rows if r[0] == style.severity(*place[1:])]
    assert any(cell in line for line in lines)
  decided = statistics.verdicts(content["comparisons"])
  told = [row["verdict"] for row in content["comparisons"]]
  assert told == [row["verdict"] for row in decided]
  assert {"ahead", "undecided"} <= {*told}


def test_what_nets_have_on_chips_stands_beside_each_of_their_accuracies(made):
  content, page = made[-2:]
  said = "On chips nets have the normalisation statistics of ideal weights."
  assert " ".join(page.text.split()).count(said) == 3
  for batch_norm, compensation, words in (
    ("design", "none", "mean normalisation statistics of 32 chips as training"),
    ("chip", "none", "on every chip with 256 training images"),
    ("chip", "global", "training images, and one factor a layer measured on"),
  ):
    config = content["config"] | {
      "robustness.batch_norm": [batch_norm],
      "robustness.compensation": compensation,
    }
    assert words in facts.calibration({"config": config})


@pytest.mark.parametrize("kind", ["arrays", "energy"])
def test_the_search_is_told_budget_by_budget(rng, tmp_path, kind):
  names = rng.permutation(registry.NAMES).tolist()
  experiment = _experiment(search__methods=tuple(names))
  _write(tmp_path, rng, experiment, kind, (0.7, 1.0))
  content, page = _run(experiment, tmp_path, draw=None)
  search = content["search"]
  result = storage.read_record(tmp_path / "search" / "result.json")
  assert {name: search[name] for name in result} == result
  text = " ".join(page.text.split())
  assert "and at most 2.00 ms of latency and at most 250 µs between" in text
  assert f"{len(names)} methods, each scored 6,400 width vectors" in text
  looks, field = style.method_looks(names), cost.KINDS[kind].field
  for budget, most in enumerate(search["budgets"]):
    for name in (*names, "uniform"):
      best = search["best"][name][budget]
      if best is None:
        assert (name, budget) == ("uniform", 0)
        continue
      row = page.row(style.quantity(kind, most), looks[name].name)
      group = [e for e in search["candidates"][name] if e["budget"] == budget]
      mean = 100 * np.mean([e["score"] for e in group])
      scores = [100 * group[0]["score"], mean, 100 * best["score"]]
      told = [str(len(group)), *(f"{score:.2f}" for score in scores)]
      assert row[3:7] == told and told[1] != told[3]
      if name != "uniform":
        assert row[2] == f"6,400 ({77 + budget})"
        assert row[7] == style.points(best["search_advantage"])
      share = f"({100 * best['cost'][field] / most:.1f} %)"
      assert row[9] == f"{style.quantity(kind, best['cost'][field])} {share}"
  # Against every other method, at the main budget.
  assert [r["rival"] for r in search["comparisons"]] == [*names[1:], "uniform"]
  for row in search["comparisons"]:
    pair = [search["best"][n][1]["chips"] for n in (names[0], row["rival"])]
    gap = np.subtract(*pair)
    gap = style.estimate(
      gap.mean(), statistics.mean_interval(gap), style.points
    )
    assert row["over"] == "chips" and "verdict" not in row
    cell = page.row(looks[row["rival"]].name, "16")[2]
    assert cell == gap + "\nsame widths" * row["same_widths"]


def _keys(value):
  """Names of all fields within."""
  if isinstance(value, dict):
    yield from value
    value = list(value.values())
  if isinstance(value, list):
    for part in value:
      yield from _keys(part)


def test_a_run_is_reported_as_its_stages_left_it(finished):
  content = storage.read_record(finished / "report" / "report.json")
  page = _Page((finished / "report" / "index.html").read_text())
  swept = storage.read_record(finished / "robustness" / "result.json")["nets"]
  search = storage.read_record(finished / "search" / "result.json")
  assert {n: c["clean"] for n, c in content["nets"].items()} == {
    name: result["clean"] for name, result in swept.items()
  }
  measured = [
    (name, kind, scenario, entry["severity"], entry["mean"])
    for name in content["nets"]
    for kind, scenario, entries in _sweeps(swept[name])
    for entry in entries
  ]
  told = [
    (row["net"], *facts.place(row), row["mean"]) for row in content["accuracy"]
  ]
  assert told == measured and content["missing"] == []
  assert content["search"]["scored"] and content["search"]["importance"] is None
  assert {k: content["search"][k] for k in search} == search
  assert page.row(style.net_name("found"), "1-bit")
  assert page.row(style.severity("stuck_off", 0.1))
  old = {"level", "finalists", "search_gain", "gain", "signal"}
  assert not old & {*_keys(content)}


def test_figures_show_the_numbers(rng, tmp_path):
  """The front with its budgets, and points where there is one severity."""
  scenarios = {"stuck_on": (0.01,)}, {"variation": (0.1, 0.4)}
  experiment = _experiment(robustness__scenarios=scenarios)
  _write(tmp_path, rng, experiment, "energy", (0.7, 1.0))
  content, _ = _run(experiment, tmp_path, draw=None)
  search = content["search"]
  figure, values = figures.front(content)
  assert len(values) == sum(map(len, search["candidates"].values()))
  (panel,) = figure.axes
  drawn = [np.array(line.get_data(), float).T for line in panel.lines]
  front = [(p["energy_joule"], 100 * p["score"]) for p in search["front"]]
  assert any(np.array_equal(line, front) for line in drawn)
  for budget in search["budgets"]:
    assert any(np.allclose(line[:, 0], budget) for line in drawn)
  figure, values = figures.hypervolumes(content)
  small, great = search["budgets"]
  for name, trajectory in search["trajectory"].items():
    best = np.array(trajectory["best"][0])  # that of the other adds nothing
    mine = values.loc[values["method"] == name, "hypervolume"]
    np.testing.assert_allclose(mine, (1 - small / great) * best)
  figure, values = figures.trained_front(content)
  energies = {n: net["energy_joule"] for n, net in content["nets"].items()}
  assert [*values["energy_joule"]] == [energies[net] for net in values["net"]]
  harshest = [row["mean"] for row in content["accuracy"] if "accuracy" in row]
  assert [*values["mean"]] == harshest
  figure, values = figures.robustness(content)
  points, sweeps = figure.axes
  rows, drawn = content["accuracy"], [x.get_ydata() for x in sweeps.lines]
  np.testing.assert_array_equal(values["mean"], [row["mean"] for row in rows])
  heights = [y for line in points.lines for y in line.get_ydata()][::-1]
  means = [100 * r["mean"] for r in rows if r["scenario"] == "stuck_on"]
  np.testing.assert_allclose(heights, means)
  for net in content["nets"]:
    of = [r for r in rows if r["net"] == net and r["scenario"] == "variation"]
    means = [100 * r["mean"] for r in of]
    assert any(len(y) == 2 and np.allclose(y, means) for y in drawn)


_VERDICTS = {
  "ahead": (0.02, [0.01, 0.03]),
  "behind": (-0.02, [-0.03, -0.01]),
  "undecided": (0.0, [-0.01, 0.01]),
}


def _pair(p, difference, chips, severity):
  """A row of `facts.accuracy` of two nets, and what they differ by."""
  place = dict(statistics="fixed", scenario="stuck_off", severity=severity)
  place["label"] = style.severity("stuck_off", severity)
  nets = [dict(net=net, **place) for net in ("found", "uniform")]
  half = 2 * abs(difference) if p > 0.05 else abs(difference) / 2
  gap = dict(ci95=[difference - half, difference + half], difference=difference)
  return nets, dict(gap, p=p, chips=chips, images=360)


@pytest.mark.parametrize(
  "p, difference, chips, cell, sentence",
  [
    (1e-9, -0.12, 16, "behind", "The found net loses to the uniform net at"),
    (
      1e-9,
      -0.12,
      4,
      "no verdict: 4 chips, 16 needed",
      "The found net against the uniform net: no verdict (4 chips, 16 needed) "
      "at the harshest severity of every defect: -12.00",
    ),
    (
      0.04,
      -0.12,
      16,
      "undecided once corrected",
      "The found net against the uniform net: undecided once corrected at the",
    ),
    (
      1e-9,
      -1 / 360,
      64,
      "no verdict: one image at most",
      "The found net against the uniform net: no verdict (one image at most) ",
    ),
    (
      0.06,
      -0.12,
      4,
      "undecided",
      "The found net can't be told from the uniform",
    ),
    (0.9, 1 / 720, 64, "undecided", "The found net can't be told from the "),
  ],
)
def test_a_difference_without_verdict_has_its_reason(
  made, p, difference, chips, cell, sentence
):
  """In report.json, in the table's cell, and on the first screen."""
  content = made[3]
  # A second one, of a milder severity, makes the first need a correction.
  told = [_pair(1.0, 0.001, 16, 0.05), _pair(p, difference, chips, 0.1)]
  rows = [row for nets, _ in told for row in nets]
  with mock.patch.object(
    statistics, "paired_difference", side_effect=[gap for _, gap in told]
  ):
    pairs = facts.comparisons(rows, "found", lambda row: None)
  decided = (pairs[1]["verdict"], pairs[1]["reason"])
  assert (decided[0] == "undecided") == (decided[1] is not None)
  content = {**content, "comparisons": pairs, "harshest": {"stuck_off": 0.1}}
  line, *_ = facts.answers(content)["Was the search worth it?"]
  assert sentence in line and f"{100 * difference:+.2f}" in line
  table = facts.tables(content)["harshest"]
  assert table["found minus uniform"].iloc[-1].splitlines()[-1] == cell


@pytest.mark.parametrize(
  "verdicts, claim",
  [
    ("ahead ahead ahead", "beats the uniform"),
    ("behind behind behind", "loses to the uniform"),
    ("undecided undecided undecided", "can't be told from"),
    ("ahead behind undecided", "ahead at 1, behind at 1, undecided at 1 of 3"),
    ("behind undecided undecided", "behind at 1, undecided at 2 of 3"),
  ],
)
def test_the_claim_is_that_of_the_harshest_severities(made, verdicts, claim):
  *_, content, _ = made
  scenarios, verdicts = ("stuck_off", "stuck_on", "variation"), verdicts.split()
  content = {**content, "comparisons": [], "accuracy": []}
  for severity, mean in ((0.5, 0.8), (1.0, 0.5), (2.0, 0.4)):
    for scenario, verdict in zip(scenarios, verdicts, strict=True):
      if severity != 1:  # not the harshest, or hopeless: must not be told
        verdict = "behind" if verdict == "ahead" else "ahead"
      place = dict(statistics="fixed", scenario=scenario, severity=severity)
      place["label"] = style.severity(scenario, severity)
      gap = dict(zip(("difference", "ci95"), _VERDICTS[verdict], strict=True))
      content["accuracy"].append(dict(net="found", mean=mean, **place))
      pair = dict(net="found", rival="uniform", rival_statistics="fixed")
      reason = "interval" if verdict == "undecided" else None
      pair |= dict(verdict=verdict, reason=reason, chips=32, **gap, **place)
      content["comparisons"].append(pair)
  content["harshest"] = facts.harshest(
    content["accuracy"], content["nets"], "found"
  )
  assert content["harshest"] == dict.fromkeys(scenarios, 1.0)
  line, *_ = facts.answers(content)["Was the search worth it?"]
  nets = content["nets"]
  for name, kind in (("arrays", "arrays"), ("energy", "energy_joule")):
    ours, theirs = (nets[n][kind] for n in ("found", "uniform"))
    assert claim in line and f"{ours / theirs:.2f} times the {name}" in line
  ends = {100 * _VERDICTS[v][0] for v in verdicts}
  for end in (min(ends), max(ends)):
    assert (f"{end:+.2f}" if end else "0.00") in line
  nets = {**nets, "uniform": {**nets["uniform"], "widths": list(_FOUND)}}
  answers = facts.answers({**content, "nets": nets})
  line, *_ = answers["Was the search worth it?"]
  assert "has the same widths as" in line


def test_the_page_stands_alone_and_everything_is_escaped(made):
  workdir, *_, content, page = made
  text = page.html
  assert text.count("<script") == 1
  assert "<script>alert(1)</script>&" in page.text
  # It points at its own parts and files alone, and no id occurs twice.
  files = {path.name for path in (workdir / "report").iterdir()}
  parts = {link for link in page.links if link.startswith("#")}
  assert {link[1:] for link in parts} <= {*page.ids}
  assert {*page.links} - parts == files - {"index.html", "report.json"}
  assert len({*page.ids}) == len(page.ids)
  assert "@import" not in text and text.count("url(") == text.count("url(#")
  assert len({*page.labels}) == len(content["files"]) // 3 and all(page.labels)
  assert len({*figures.NAMES}) == 13
  for name in {file.split(".")[0] for file in content["files"]} - {"index"}:
    svg = (workdir / "report" / f"{name}.svg").read_text()
    # In the page, each colour has a twin on dark screens.
    for color in set(re.findall(r"#[0-9a-f]{6}\b", svg)):
      assert f"var(--c{color[1:]}, {color})" in text, (name, color)
      assert f"--c{color[1:]}: {style.DARK[color]};" in text


def test_the_same_content_gives_the_same_bytes(made):
  workdir, experiment, _, content, page = made
  drawn = figures.draw(content)
  assert render.render(content, drawn) == page.html
  for name, file in render.files(drawn).items():
    assert file == (workdir / "report" / name).read_bytes(), name
  again = json.loads(json.dumps(report.collect(experiment, workdir)))
  assert again | {"files": content["files"]} == content
  # Nets were measured by two versions: both are told.
  assert content["versions"] == {"jax": "0.10.2, 0.11.0"}


def test_nets_given_by_name_are_compared(rng, tmp_path):
  """The first binary net is compared; 8-bit and float nets are told apart."""
  nets = ["resnet18_1x", "resnet18_hawis_a"]
  nets += ["resnet18_1x_int8", "resnet18_1x_float"]
  network = dict(network__family="imagenet", network__depth=18)
  order = [nets[place] for place in (3, 2, 0, 1)]  # of training
  experiment = _experiment(train__nets=tuple(order), **network)
  swept = _write(tmp_path, rng, experiment)["nets"]
  content, page = _run(experiment, tmp_path)
  assert list(content["nets"]) == nets and content["main_net"] == nets[0]
  assert content["search"] is content["space"] is None
  assert content["missing"] == []  # a float net meets no chips
  shown = ["robustness", "chips", "yield", "trained_front"]
  shown += ["widths", "utilisation", "components", "training"]
  files = [f"{name}.{kind}" for name in shown for kind in ("svg", "pdf", "csv")]
  assert [*content["files"]] == [*files, "index.html"]
  before, configured = page.text.split("\nConfiguration")
  after = configured.split("What the numbers mean")[1]
  for word in ("search", "policy", "uper-net", "found", "budget"):
    assert word not in before + after, word
  answers = facts.answers(content)
  (better,) = answers["Against other widths"]
  (worse,) = answers["Against 8-bit weights"]
  assert "loses to the HAWIS-A (ResNet-18)" in better
  arrays = style.quantity("arrays", swept[nets[0]]["arrays"])
  assert "8-bit 1x" in worse and "times" not in worse
  assert f"{arrays} crossbar arrays of 1-bit weights against {arrays} " in worse
  row = page.row("float 1x", "float")
  assert row[2:10] == ["-"] * 8 and row[10] == "360 of 360"
  # Groups of blocks start where the published 1x widths double.
  doubled = np.flatnonzero(np.diff(_WIDTHS["resnet18_1x"])) + 2
  assert content["group_starts"] == [1, *doubled]


def test_only_float_nets_are_on_no_chip(rng, tmp_path):
  experiment = _experiment(train__nets=("resnet20_1x_float",))
  _write(tmp_path, rng, experiment)
  content, page = _run(experiment, tmp_path)
  assert content["main_net"] is None and content["accuracy"] == []
  assert facts.answers(content)["On chips"][0] in page.text
  assert {f.split(".")[0] for f in content["files"]} == {
    "widths",
    "training",
    "index",
  }


def test_one_net_and_one_method_have_no_rival(rng, tmp_path):
  experiment = _experiment(
    search__methods=("evolution",), train__nets=("found",)
  )
  _write(tmp_path, rng, experiment)
  path = tmp_path / "search" / "result.json"
  search = storage.read_record(path)
  search["candidates"]["uniform"], search["best"]["uniform"] = [], [None]
  storage.write_record(path, search)
  (tmp_path / "metrics.jsonl").unlink()
  content, page = _run(experiment, tmp_path)
  assert content["comparisons"] == content["search"]["comparisons"] == []
  assert "is alone on chips" in page.text
  assert "training.svg" not in content["files"]


@pytest.mark.parametrize("is_uniform", [False, True])
def test_the_net_that_training_selected_is_named(rng, tmp_path, is_uniform):
  """With its score in the super-net, and those after each round of training."""
  experiment = _experiment()
  swept = _write(tmp_path, rng, experiment)
  path = tmp_path / "search" / "result.json"
  search = storage.read_record(path)
  ours, uniform = (
    [entry["widths"] for entry in search["candidates"][name]]
    for name in (search["method"], "uniform")
  )
  first = [uniform[0], *ours]  # the super-net's best, then another
  found, loser = (first[0], first[2]) if is_uniform else (first[2], first[0])
  search["selection"] = {
    "found": found,
    "steps": 7,
    "rounds": [
      [
        {"widths": w, "score": 0.5 + 0.01 * k, "mean": 0.4}
        for k, w in enumerate(first)
      ],
      [
        {"widths": found, "score": 0.62, "mean": 0.515},
        {"widths": loser, "score": 0.625, "mean": 0.5},
      ],
    ],
  }
  search["found"] = swept["nets"]["found"]["widths"] = found
  storage.write_record(path, search)
  storage.write_record(tmp_path / "robustness" / "result.json", swept)
  content, page = _run(experiment, tmp_path, draw=None)
  entry = facts.found_candidate(content["search"])
  assert entry["widths"] == found
  before = style.percent(entry["score"])
  name = "uniform" if is_uniform else "policy (PPO on a reward model), number 2"
  after = ["50.00" if is_uniform else "52.00", "62.00", "51.50"]
  row = page.row(name, "yes")
  assert row[2:] == [before, *after, ", ".join(map(str, found))]
  told = [row[1] for row in page.rows if "yes" in row[1:2]]
  assert told == ["yes"]
  (row,) = [row for row in page.rows if row[1:2] == ["found, by training"]]
  again = search["best"]["uniform"][0]["score"]
  again = style.percent(again) if is_uniform else "-"
  assert row[2:8] == ["-", "-", before, "-", again, "62.00"]
  # The super-net's best was trained too, for a round, and lost: no number of
  # another round stands in its column.
  (row,) = [
    row for row in page.rows if row[1:2] == ["policy (PPO on a reward model)"]
  ]
  bests = [
    search[part]["policy"][0]["score"] for part in ("candidates", "best")
  ]
  assert [row[4], row[6], row[7]] == [*map(style.percent, bests), "-"]
  assert "its score after round 2 of training [%]" in page.text
  # The uniform net, which always goes on, can be compared with the found one.
  (row,) = [r for r in page.rows if r[1:2] == ["uniform"] and len(r) > 8]
  uniform = search["candidates"]["uniform"][0]["score"]
  after = "62.00" if is_uniform else "62.50"
  assert [row[4], row[7]] == [style.percent(uniform), after]
  assert "best after training of 3, which are the best of policy" in page.text


def test_odd_names_are_escaped(rng, tmp_path):
  """Of a technology, a net, a scenario, and an effect not known."""
  path = tmp_path / "technology.json"
  path.write_text(json.dumps({"preset": "isaac_32nm", "name": "<i>mine</i>"}))
  scenario = {"name": "{both} <i>&", "stuck_off": (0.0, 0.1), "stuck_on": 0.1}
  experiment = _experiment(
    space__technology=str(path), robustness__scenarios=(scenario,)
  )
  swept = _write(tmp_path, rng, experiment, "energy")
  swept["nets"]["<i>int8"] = swept["nets"].pop("baseline_1x")
  sweeps = swept["nets"]["found"]["sweeps"]["fixed"]
  sweeps["new"] = sweeps["{both} <i>&: stuck_off"]
  storage.write_record(tmp_path / "robustness" / "result.json", swept)
  content, page = _run(experiment, tmp_path)
  assert content["hardware"]["technology"] == "<i>mine</i>"
  assert "<i>" not in page.html
  both = "{both} <i>&: 10 % stuck off, 10 % stuck on"
  assert both in {row[0] for row in page.rows}
  assert "new = 0.1" in {row[0] for row in page.rows}
  assert "found minus <i>int8" in {cell for row in page.rows for cell in row}


@pytest.mark.parametrize(
  "scenario, told, key",
  [
    (
      {"stuck_off": 0.05, "variation": 0.3, "name": "mine"},
      "mine: 5 % stuck off, variation γ = 0.3",
      "mine: stuck_off",
    ),
    (
      {"variation": 0.3, "stuck_off": (0.0, 0.1), "stuck_on": (0.0, 0.02)},
      "10 % stuck off, variation γ = 0.3, 2 % stuck on",
      "variation = 0.3, stuck_on: stuck_off",
    ),
    (
      {"name": "mine", "preset": "reram_wan2022", "device": 1.0},
      "mine: 1 x the device's own effects, reram_wan2022",
      "mine: device",
    ),
    (
      {"stuck_off": 0.1, "layers": ("head",), "tile_variation": 0.2},
      "in head: 10 % stuck off, tiles' variation of 0.2",
      "tile_variation = 0.2, in head: stuck_off",
    ),
    ({"stuck_off": 0.1}, "10 % stuck off", "stuck_off"),
  ],
)
def test_all_effects_of_a_scenario_are_told(rng, tmp_path, scenario, told, key):
  """In tables, verdicts, the terminal's table, and of what is missing."""
  experiment = _experiment(robustness__scenarios=(scenario,))
  swept = _write(tmp_path, rng, experiment)
  entries = swept["nets"]["uniform"]["sweeps"]["fixed"][key]
  content, page = _run(experiment, tmp_path, draw=None)
  assert page.row(told)[1]
  assert told in facts.answers(content)["Was the search worth it?"][0]
  assert told in [*facts.summary(content)["where"]]
  assert content["accuracy"][-1]["label"] == told
  entries.pop()
  storage.write_record(tmp_path / "robustness" / "result.json", swept)
  content, _ = _run(experiment, tmp_path, draw=None)
  assert content["missing"] == [f"uniform: {told}"]


def test_what_nets_were_trained_on_is_told(rng, tmp_path):
  """Of those on chips the scenarios; of a file its name; digests of all."""
  nets = ("baseline_1x", "baseline_1x_chips")
  fields = {"data__data_dir": "/x/mine.npz", "train__nets": nets}
  scenarios = {"device": 1.0}, {"variation": 0.5, "stuck_on": 0.01}
  fields |= {"hardware_aware__most_severity": 1.5, "hardware_aware__chips": 4}
  experiment = _experiment(hardware_aware__scenarios=scenarios, **fields)
  experiment.splits.name, experiment.splits.version = "npz", ""
  _write(tmp_path, rng, experiment)
  content, page = _run(experiment, tmp_path, draw=None)
  own = ", ".join(sorted(facts.own_effects(content).split(", ")))
  text = " ".join(page.text.split())
  for told in (
    "nets trained on chips: 4 new chips a step, each of one, drawn at random, "
    "of: 1 x the device's own effects (",
    ") / variation γ = 0.5, 1 % stuck on; a chip has a share of these "
    "severities that is uniform from 0 to 1.5 ",
    "data set npz mine.npz · ResNet-20",
    "npz mine.npz, 360 test images; SHA-256 of the stored images and labels: "
    "train 0a1b, test 2c3d",
  ):
    assert told in text, told
  assert own == "1.75 % stuck on, 9.04 % stuck off"
  assert content["trained_on"]["scenarios"][0].count("%") == 2
  # No scenarios of its own: those of the search.
  experiment = _experiment(**fields, search__scenarios=({"stuck_on": 0.1},))
  content = report.collect(experiment, tmp_path)
  assert content["trained_on"]["scenarios"] == ["10 % stuck on"]
  # A device without effects is not drawn beside other scenarios.
  fields |= {"hardware_aware__scenarios": scenarios}
  content = report.collect(
    _experiment(**fields, device__preset="isaac"), tmp_path
  )
  (told,) = content["trained_on"]["scenarios"]
  assert told == "variation γ = 0.5, 1 % stuck on"
  experiment = _experiment(train__nets=("baseline_1x",))
  _write(tmp_path, rng, experiment)
  content, page = _run(experiment, tmp_path, draw=None)
  assert content["trained_on"] is None
  assert "nets trained on chips:" not in page.text


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_devices_own_effects_are_written_out(rng, tmp_path, share):
  experiment = _experiment(robustness__scenarios=({"device": share},))
  _write(tmp_path, rng, experiment)
  row = _run(experiment, tmp_path, draw=None)[0]["accuracy"][0]
  assert row["label"] == f"{share:g} x the device's own effects"
  own = {"stuck_off": 9.04 * share, "stuck_on": 1.75 * share}
  assert {*row["effects"].split(", ")} == {
    f"{own['stuck_off']:g} % stuck off",
    f"{own['stuck_on']:g} % stuck on",
  }


def test_costs_of_another_runs_search_are_by_that_runs_technology(
  rng, tmp_path
):
  source, workdir = tmp_path / "source", tmp_path / "run"
  theirs = _experiment(space__technology="neurosim_22nm", seed=5)
  ours = _experiment(
    space__technology="isaac_32nm", device__preset="reram_wan2022"
  )
  for folder, experiment in ((source, theirs), (workdir, ours)):
    folder.mkdir()
    _write(folder, rng, experiment, "energy", (0.5, 1.0))
  config = settings.flatten(theirs.config)
  storage.write_record(source / "config.json", json.loads(json.dumps(config)))
  results.write_source(workdir, source, {"found": "0" * 64})
  content, page = _run(ours, workdir, draw=None)
  text = " ".join(page.text.split())
  how = (
    f"by neurosim_22nm for {theirs.config.device.preset} with arrays of "
    "64 x 64 cells"
  )
  for told in (
    f"its costs are counted {how}. Digests",
    f"other budget, of 2 in all; costs {how}.",
    f"same updates. Energy, times and area {how}.",
    f"(counted {how}, as the search did); takes ",
    "of 1-bit nets, by isaac_32nm.",
    f"technology, here isaac_32nm, and compare with no cost by another; those "
    f"of the search are {how}.",
    "area in the search component numbers of neurosim_22nm;",
    "one training seed and one search (seed 5)",
    f"of the device {theirs.config.device.preset}; candidates",
  ):
    assert told in text, told
  assert facts.other_budgets(content)[0][0].endswith(" of the search")
  # The other run itself says it once.
  _, page = _run(theirs, source, draw=None)
  assert "in the search component" not in " ".join(page.text.split())
  assert "the search did" not in page.text and "isaac" not in page.text


@pytest.mark.parametrize(
  "mapping, told",
  [
    ("differential", "a weight is a differential pair of cells;"),
    ("single", "a weight is one cell, less its row's reference cell;"),
    ("offset", "a weight is one cell, less what the digital side counts of"),
    ("complementary", "a weight is two cells on neighbouring word lines of"),
  ],
)
def test_the_page_says_what_holds_a_weight(made, mapping, told):
  content = made[3]
  device = {**content["device"], "mapping": mapping}
  page = _Page(render.render({**content, "device": device}, {}))
  assert told in " ".join(page.text.split())


def test_the_layer_whose_converters_clip_most_is_named(made):
  *_, content, page = made
  assert facts.tables(content)["clipped"].empty
  rows = [dict(row) for row in content["accuracy"]]
  first, second = rows[0], next(r for r in rows if r["net"] == "uniform")
  first["clipped"] = {"stem": 0.001, "head": 0.02}
  second["clipped"] = {"stem": 0.0}
  table = facts.tables({**content, "accuracy": rows})["clipped"]
  shown = [first["label"], "2.00 in head", "none", "-"]
  assert table.to_numpy().tolist() == [shown]
  assert table.columns[1] == "found [%]"


@pytest.mark.parametrize("on_chips", [False, True])
def test_a_float_net_is_on_chips_where_it_was_measured_there(made, on_chips):
  content = made[3]
  config = {**content["config"], "robustness.float_nets": on_chips}
  nets = {**content["nets"]}
  nets["uniform"] = {**nets["uniform"], "weight_bits": 32}
  page = _Page(render.render({**content, "config": config, "nets": nets}, {}))
  text = " ".join(page.text.split())
  assert ("of an ideal DAC" in text) is on_chips
  assert ("floating point, never put on a crossbar." in text) is not on_chips


def test_an_unfinished_sweep_says_what_is_missing(rng, tmp_path):
  experiment = _experiment()
  experiment.splits.test = range(5000)
  swept = _write(tmp_path, rng, experiment)
  del swept["nets"]["baseline_1x"]
  sweeps = swept["nets"]["uniform"]["sweeps"]["fixed"]
  del sweeps["variation"]
  del sweeps["stuck_on"][-1]
  storage.write_record(tmp_path / "robustness" / "result.json", swept)
  content, page = _run(experiment, tmp_path, draw=None)
  assert "uniform: 2 % stuck on; uniform: variation γ = 0; " in page.text
  assert content["missing"][0] == "1x baseline: everything"
  assert len(content["missing"]) == 1 + 1 + 7
  assert "360 of 5,000" in page.text
  # Compared at the harshest severity that both have.
  assert page.row("1.5 % stuck on")[2].startswith(("+", "-"))


def _placeholders(content):
  """In the place of figures, which take seconds."""
  names = ["search", *(["training"] if content["curves"] else [])]
  return dict.fromkeys(names, figures.Drawn("<svg></svg>", b"%PDF", "a,b"))


def test_a_report_is_made_once_for_the_same_results(rng, tmp_path):
  experiment = _experiment()
  swept = _write(tmp_path, rng, experiment)
  before, _ = _run(experiment, tmp_path, _placeholders)
  folder = tmp_path / "report"

  def stamps():
    return {f: f.stat().st_mtime_ns for f in folder.iterdir()}

  first = stamps()
  assert {f.name for f in first} == {*before["files"], "report.json"}
  with (tmp_path / "metrics.jsonl").open("a") as file:
    # Nothing that is shown.
    file.write(_line(1.0, "robustness", 9, {"x": 1.0}))
  _run(experiment, tmp_path, _placeholders)
  assert stamps() == first
  (folder / "search.svg").unlink()
  (folder / "report.json").write_text("{")
  assert (
    _run(experiment, tmp_path, _placeholders)[0]["digest"] == before["digest"]
  )
  assert {*stamps()} == {*first}
  # Other results: another report, and no picture of what is gone.
  swept["nets"]["found"]["clean"] = 0.5
  storage.write_record(tmp_path / "robustness" / "result.json", swept)
  (tmp_path / "metrics.jsonl").unlink()
  changed, page = _run(experiment, tmp_path, _placeholders)
  assert changed["digest"] != before["digest"] and "50.00 [" in page.text
  assert not (folder / "training.svg").exists()


def test_what_stops_it_is_named(rng, tmp_path):
  experiment, path = _experiment(), tmp_path / "robustness" / "result.json"
  _write(tmp_path, rng, experiment)
  (tmp_path / "report").write_text("a file")
  with pytest.raises(errors.InputError, match="can't write"):
    _run(experiment, tmp_path, draw=None)
  (tmp_path / "search" / "result.json").unlink()
  with pytest.raises(errors.InputError, match="--stages search first"):
    _run(experiment, tmp_path)
  storage.write_record(path, {"format": results.ROBUSTNESS_FORMAT, "nets": {}})
  with pytest.raises(errors.InputError, match="got no net"):
    _run(experiment, tmp_path)
  path.unlink()
  with pytest.raises(errors.InputError, match="--stages robustness first"):
    _run(experiment, tmp_path)
  # Of several processes only the first one writes, or reads.
  report.run(experiment, tmp_path, types.SimpleNamespace(recording=False))


def test_name_and_command_are_those_given(made, monkeypatch):
  workdir, experiment, _, content, _ = made
  assert content["name"] == workdir.name
  argv = "/x/hawis_jax/main.py --config=configs/tiny.py:a --stages all".split()
  monkeypatch.setattr(sys, "argv", argv)
  again = report.collect(experiment, workdir)
  assert again["name"] == "tiny"
  expected = "python -m hawis_jax.main --config=configs/tiny.py:a --stages all"
  assert again["command"] == expected


def test_names_and_looks_differ():
  shown = {
    "uniform_float": "float uniform",
    "baseline_1x_int8": "8-bit 1x baseline",
    "found_0.7_chips": "found at 0.7x budget, trained on chips",
    "resnet18_hawis_b": "HAWIS-B (ResNet-18)",
    "resnet20_hawis_a_int8": "8-bit HAWIS-A",
    "resnet20_hawis_a_chips": "HAWIS-A (ResNet-20), trained on chips",
    "baseline_1x_int8_chips": "8-bit 1x baseline, trained on chips",
    "mine": "mine",
  }
  assert {net: style.net_name(net) for net in shown} == shown
  nets = ("resnet20_hawis_a", "resnet20_1x", "resnet20_1x_int8", "another")
  nets += ("resnet20_1x_float", "found", "uniform", "baseline_1x")
  presets = {style.net_name(net) for net in width_vectors.PRESETS}
  assert len(presets) == len(width_vectors.PRESETS)
  for looks in (style.net_looks(nets), style.method_looks(registry.NAMES)):
    assert len(looks) >= 8
    for field in ("name", "color", "marker"):
      assert len({getattr(look, field) for look in looks.values()}) == len(
        looks
      )
  assert len(style.net_looks(map(str, range(20)))) == 20
  # Trained on chips: the same colour and marker, dashed and open.
  plain, chips = style.net_looks(("found", "found_chips")).values()
  assert (plain.color, plain.marker) == (chips.color, chips.marker)
  assert (plain.dashes, plain.face) == ("-", plain.color)
  assert (chips.dashes, chips.face) == ("--", "none")
  # Of another run: the same colours.
  looks = style.net_looks(
    ("a: found", "b: uniform", "b: found", "b: found_chips")
  )
  assert looks["a: found"].color == looks["b: found"].color
  assert len({look.dashes for look in looks.values()}) == 3


def test_amounts_have_three_digits():
  for kind, value, text in (
    ("arrays", 9999, "9,999"),
    ("weights", 10_000, "10.0 k"),
    ("macs", 999_600, "1.00 M"),
    ("macs", 27_900_000_000, "27.9 G"),
    ("energy", 5.534e-4, "553 µJ"),
    ("energy", 9.996e-10, "1.00 nJ"),
    ("latency", 4.21e-5, "42.1 µs"),
    ("area", 1.352e-6, "1.35 mm²"),
    ("energy", None, "-"),
  ):
    assert style.quantity(kind, value) == text


def _compared(folder, correct, seed=0, images="same"):
  """A run's report.json and tables, as far as a comparison reads them."""
  content = io.BytesIO()
  np.save(content, np.packbits(correct, axis=1))
  content = content.getvalue()
  (folder / "robustness").mkdir(parents=True)
  (folder / "robustness" / "one.npy").write_bytes(content)
  digest = hashlib.sha256(content).hexdigest()
  row = {
    "net": "found",
    "statistics": "chip",
    "scenario": "variation",
    "severity": 0.7,
    "label": "variation γ = 0.7",
    "effects": "variation γ = 0.7",
    "mean": correct.mean(),
    "ci95_total": statistics.total_interval(correct),
    "correct": {"file": "one.npy", "sha256": digest},
  }
  return {
    "config": {"seed": seed},
    "data": {"name": "x", "version": "1", "test_images": 400}
    | {"test_digest": images},
    "nets": {"found": {"test_images": correct.shape[1]}},
    "accuracy": [row],
  }


@pytest.mark.parametrize(
  "seed, images, digest",
  [(0, 400, "same"), (1, 400, "same"), (0, 300, "same"), (0, 400, "others")],
)
def test_runs_are_compared_in_pairs_where_chips_and_images_are_the_same(
  tmp_path, rng, seed, images, digest
):
  first = rng.random((32, 400)) < 0.9
  second = first & (rng.random((32, 400)) < 0.95)
  folders = {name: tmp_path / name for name in "ab"}
  runs = {
    "a": _compared(folders["a"], first),
    "b": _compared(folders["b"], second[:, :images], seed, digest),
  }
  (row,) = compare.differences(runs, folders)
  gap = first.mean() - second[:, :images].mean()
  np.testing.assert_allclose(row["difference"], gap)
  is_paired = (seed, images, digest) == (0, 400, "same")
  assert row["paired"] == is_paired
  if is_paired:
    expected = statistics.paired_difference(first, second)["ci95"]
    np.testing.assert_allclose((row["low95"], row["high95"]), expected)
  else:  # wider, and about the root of the sum of squares of the halves
    halves = [
      np.ptp(run["accuracy"][0]["ci95_total"]) / 2 for run in runs.values()
    ]
    half = (row["high95"] - row["low95"]) / 2
    np.testing.assert_allclose(half, np.hypot(*halves), rtol=0.02)


def _two_runs(rng, tmp_path, same, **other):
  """Folders of two reports of 1x nets on the device, the second of `other`."""
  folders = [tmp_path / "one", tmp_path / "two"]
  scenario = {"device": (0.0, 1.0)}
  for folder, fields in zip(folders, ({}, other), strict=True):
    folder.mkdir()
    experiment = _experiment(
      train__nets=("baseline_1x",), robustness__scenarios=(scenario,), **fields
    )
    swept = _write(folder, np.random.default_rng(7), experiment)
    digest = "0" * 64 if same else folder.name
    swept["nets"]["baseline_1x"]["inputs"] = {"trained net": digest}
    storage.write_record(folder / "robustness" / "result.json", swept)
    _run(experiment, folder, draw=None)
  return folders


def _compare(folders, out):
  with mock.patch.object(
    figures, "draw_one", return_value=figures.Drawn("<svg></svg>", b"", "")
  ):
    page = _Page(compare.run(folders, out).read_text())
  return page, " ".join(page.text.split())


@pytest.mark.parametrize("same", [False, True])
def test_a_comparison_says_which_nets_are_the_same(rng, tmp_path, same):
  folders = _two_runs(rng, tmp_path, same)
  page, text = _compare(folders, tmp_path / "out")
  told = (
    "Trained once and measured in both runs, by equal digests: 1x baseline."
  )
  assert (told in text) is same
  # The same device: one label. Alike all over: 0, and an interval of images.
  (row,) = [r for r in page.rows if r[0].startswith("0 x the device's own")]
  assert row[0] == "0 x the device's own effects, fixed"
  assert row[1].startswith("0.00 [-") and "two images are added for it" in text
  half = float(row[1].split("+")[1].rstrip("]"))
  # Of 360 differences of 0, and of 1 and -1: Student's, written out.
  error = np.sqrt(2 / 361 / 362)
  np.testing.assert_allclose(
    half, 100 * error * stats.t.ppf(0.975, 361), atol=0.006
  )
  values = pd.read_csv(tmp_path / "out" / "differences.csv")
  assert values["high95_points"].round(2).iloc[0] == half
  assert "difference" not in values


def test_a_comparison_names_what_devices_have_and_warns_of_energies(
  rng, tmp_path
):
  folders = _two_runs(rng, tmp_path, True, device__preset="reram_wan2022")
  page, text = _compare(folders, tmp_path / "out")
  told = [
    storage.read_record(folder / "report" / "report.json")["accuracy"][-1]
    for folder in folders
  ]
  own, theirs = (row["effects"] for row in told)
  assert own != theirs
  label = (
    f"1 x the device's own effects (one: hawis_published, {own}; two: "
    f"reram_wan2022, {theirs}), fixed"
  )
  assert page.row(label)[1]
  content = storage.read_record(folders[0] / "report" / "report.json")
  warning = facts.energy_warning(content)
  assert warning in facts.warnings(content)
  assert f"Warning of one: {warning}" in text
  assert "Warning of two:" not in text


@pytest.mark.parametrize(
  "count, message",
  [
    (1, "runs: got 1, needed are two or more"),
    (2, "got no report/report.json"),
  ],
)
def test_what_is_not_to_be_compared_is_one_line(
  tmp_path, capsys, count, message
):
  runs = [str(tmp_path / str(number)) for number in range(count)]
  assert command.main([*runs, "--out", str(tmp_path / "out")]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1
  assert not (tmp_path / "out").exists()
