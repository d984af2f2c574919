"""The report against numbers computed here from synthetic results."""

import base64
from html import parser as html_parser
import io
import json
import sys
import types

import numpy as np
import pytest
from scipy import stats

from hawis_jax import config as config_lib
from hawis_jax import cost
from hawis_jax import errors
from hawis_jax import experiment as experiment_lib
from hawis_jax import files
from hawis_jax import finalists as finalists_lib
from hawis_jax import intervals
from hawis_jax import methods
from hawis_jax import nets as nets_lib
from hawis_jax import report
from hawis_jax import robustness
from hawis_jax import widths as widths_lib
from hawis_jax.report import figures
from hawis_jax.report import figures_search
from hawis_jax.report import looks
from hawis_jax.report import outcome
from hawis_jax.report import units
from hawis_jax.report import wording

_FOUND = (24, 40, 32, 48, 40, 32, 56, 96, 64, 80, 96, 64, 112) + (
  128,
  192,
  128,
  160,
  96,
  64,
)
_WIDTHS = {
  **widths_lib.PRESETS,
  "found": _FOUND,
  "baseline_1x": (16,) * 7 + (32,) * 6 + (64,) * 6,
  "uniform": (32,) * 7 + (64,) * 6 + (128,) * 6,
}
_SEARCHED = ("found", "baseline_1x", "uniform")
# A run of published widths and counterparts, with no search.
_NAMED = (
  "resnet20_hawis_a",
  "resnet20_1x",
  "resnet20_1x_int8",
  "resnet20_1x_float",
)
# Accuracy lost at full severity of a scenario.
_LOSS = {
  "found": 0.15,
  "baseline_1x": 0.6,
  "uniform": 0.2,
  "resnet20_hawis_a": 0.1,
  "resnet20_1x": 0.35,
  "resnet20_1x_int8": 0.7,
  "resnet18_1x": 0.3,
  "resnet18_hawis_b": 0.2,
}
_BITS = {nets_lib.BINARY: 1, nets_lib.INT8: 8, nets_lib.FLOAT: 32}


def _experiment(**overrides):
  config = config_lib.default()
  config.update_from_flattened_dict(overrides)
  searches = config_lib.searches(config)
  named = {**widths_lib.PRESETS, "baseline_1x": _WIDTHS["baseline_1x"]}
  if searches:
    named["uniform"] = _WIDTHS["uniform"]
  hardware = config_lib.hardware(config)
  geometry = cost.cifar_geometry(20, (8, 8, 1), 32, 10, hardware)
  if config.network.family == "imagenet":
    geometry = cost.imagenet_geometry("7x7", 64, 32, 10, hardware)
    named["baseline_1x"] = widths_lib.PRESETS["resnet18_1x"]
  return experiment_lib.Experiment(
    config=config,
    splits=types.SimpleNamespace(
      name="cifar10", version="3.0.2", num_classes=10, test=range(360)
    ),
    space=config_lib.width_space(config) if searches else None,
    geometry=geometry,
    device=config_lib.device(config),
    widths=named,
  )


def _robustness(rng, experiment, **loss):
  """A result of the sweep: chips are more or less lucky, with all nets."""
  config, loss = experiment.config, {**_LOSS, **loss}
  result = {"format": 2, "nets": {}}
  luck = rng.normal(0, 0.3, config.robustness.chips)
  for net in config.train.nets:
    vector, kind = nets_lib.parse(net)
    vector = _WIDTHS[vector]
    clean = round(0.97 * 360) / 360
    sweeps = {}
    scenarios = config_lib.sweeps(config)
    for swept in () if kind == nets_lib.FLOAT else scenarios:
      scenario, levels = swept.key, [level.value for level in swept.levels]
      is_random = {level.value: level.is_random for level in swept.levels}
      sweeps[scenario] = []
      for level in levels:
        severity = (level / max(levels)) ** 1.5
        spread = np.exp(luck + rng.normal(0, 0.1, luck.shape))
        accuracy = clean - loss[net] * severity * spread
        accuracy = np.round(np.clip(accuracy, 0.08, 1) * 360) / 360
        accuracy = accuracy if is_random[level] else accuracy[:1]
        sweeps[scenario].append(
          {
            "level": level,
            **robustness.summarize(accuracy),
            "standard_errors": {
              "chips": float(accuracy.std() / len(accuracy) ** 0.5),
              "images": 0.01,
              "total": 0.02,
            },
            "accuracy": accuracy.tolist(),
          }
        )
    result["nets"][net] = {
      "widths": list(vector),
      "weight_bits": _BITS[kind],
      "test_images": 360,
      "clean": clean,
      "sweeps": sweeps,
    }
    if kind != nets_lib.FLOAT:
      costs = experiment.exact_costs(vector)
      result["nets"][net].update({n: costs[n] for n in cost.COUNTS})
  return result


def _search(rng, experiment, kind, shares, limits):
  """A result of the search: the first method gains on the others."""
  search = experiment.config.search
  shape = len(shares), search.updates
  main = shares.index(1.0)
  field = cost.KINDS[kind].field

  def finalist(budget, vector, score, search_gain):
    return {
      "budget": budget,
      "widths": list(vector),
      "cost": experiment.exact_costs(vector),
      "score": score,
      "clean": score + 0.2,
      "scenarios": [robustness.summarize(score + rng.normal(0, 0.02, 16))] * 2,
      "chips": (score + rng.normal(0, 0.02, 16)).tolist(),
      "search_gain": search_gain,
    }

  def scaled(vector, budget):
    factor = rng.uniform(0.95, 1) * shares[budget] ** 0.5
    return [max(1, int(factor * w)) for w in vector]

  def ranked(top, budget):
    top += 0.05 * np.log(shares[budget])
    scores = np.sort(top - rng.exponential(0.01, search.finalists))[::-1]
    vectors = [scaled(_FOUND, budget) for _ in scores]
    return [
      finalist(budget, v, s, s - 0.6)
      for v, s in zip(vectors, scores.tolist(), strict=True)
    ]

  trajectory, finalists = {}, {}
  for place, method in enumerate(search.methods):
    gain = 0.08 * 0.7**place
    mean = 0.6 + gain * (1 - np.exp(-np.arange(search.updates) / 30))
    mean = mean + rng.normal(0, 0.008, shape)
    best = np.maximum.accumulate(mean + rng.uniform(0.03, 0.08, shape), axis=1)
    trajectory[method] = {"mean": mean.tolist(), "best": best.tolist()}
    finalists[method] = [
      entry
      for budget in range(len(shares))
      for entry in ranked(0.7 - 0.01 * place, budget)
    ]
  first = finalists[search.methods[0]]
  found = next(entry for entry in first if entry["budget"] == main)
  found.update(finalist(main, _FOUND, found["score"], 0.1))
  # No net is within the least of several budgets.
  finalists["uniform"] = [
    finalist(budget, scaled(_WIDTHS["uniform"], budget), 0.65, None)
    for budget in range(len(shares) > 1, len(shares))
  ]
  uniform = finalists["uniform"][main - (len(shares) > 1)]
  uniform.update(finalist(main, _WIDTHS["uniform"], 0.655, None))
  return {
    "format": 2,
    "method": search.methods[0],
    "found": list(_FOUND),
    "cost": kind,
    "technology": experiment.config.space.technology,
    "budgets": [1.02 * found["cost"][field] * share for share in shares],
    "main_budget": main,
    "limits": limits,
    "evaluations": search.updates * search.proposals,
    "references": search.updates * search.references,
    "distinct": {
      method: [int(rng.integers(1, 99)) for _ in shares]
      for method in search.methods
    },
    "finalists": finalists,
    "best": {
      method: [
        next((e for e in entries if e["budget"] == budget), None)
        for budget in range(len(shares))
      ]
      for method, entries in finalists.items()
    },
    "front": finalists_lib.front(finalists),
    "trajectory": trajectory,
  }


def _curves(rng, config, nets):
  lines = []
  stages = [f"train/{net}" for net in nets]
  if config_lib.searches(config):
    stages.insert(0, "pretrain")
  for stage in (*stages, "robustness"):
    total = config.pretrain.steps if stage == "pretrain" else config.train.steps
    for step in range(config.log_every, total + 1, config.log_every):
      left = np.exp(-4 * step / total) * np.exp(rng.normal(0, 0.2))
      values = {"loss": 2.3 * left + 0.02, "weight_norm": 30.0}
      names = ("accuracy",)
      if stage == "pretrain":
        names = ("accuracy_max", "accuracy_mean")
      for place, name in enumerate(names):
        values[name] = float(1 - 0.9 * left / 1.7 - 0.05 * place * left)
      if stage.startswith("train/") and step % 200 == 0:
        values["accuracy_validation"] = values["accuracy"] - 0.03
      line = {"time": 0.0, "stage": stage, "step": step, "values": values}
      lines.append(json.dumps(line) + "\n")
  return "".join(lines)


def _write(
  workdir,
  rng,
  experiment,
  curves=True,
  kind="arrays",
  shares=(1.0,),
  limits=None,
  **loss,
):
  """Writes the results of all stages before the report; returns the sweep's."""
  config = experiment.config
  result = _robustness(rng, experiment, **loss)
  stages = {"robustness": result}
  if config_lib.searches(config):
    stages["search"] = _search(rng, experiment, kind, shares, limits or {})
  for stage, value in stages.items():
    (workdir / stage).mkdir(exist_ok=True)
    files.write_record(workdir / stage / "result.json", value)
  if curves:
    curves = _curves(rng, config, config.train.nets)
    (workdir / "metrics.jsonl").write_text(curves)
  return result


class _Page(html_parser.HTMLParser):
  """Checks that tags are closed; collects text and what points elsewhere."""

  def __init__(self, text):
    super().__init__()
    self.links, self.open, self.text = [], [], ""
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    assert tag not in ("script", "link", "iframe", "object", "base")
    if tag not in ("meta", "img"):
      self.open.append(tag)
    names = ("src", "href", "srcset", "action", "data", "poster")
    self.links += [value for name, value in attrs if name in names]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data.replace("\N{NO-BREAK SPACE}", " ") + "\n"


def _run(experiment, workdir):
  """Runs the stage; returns report.json's content and the page."""
  said = io.StringIO()
  metrics = types.SimpleNamespace(
    recording=True,
    stream=said,
    flush=lambda: None,
    say=lambda text: print(text, file=said),
  )
  report.run(experiment, workdir, metrics)
  folder = workdir / "report"
  content = json.loads((folder / "report.json").read_text())
  return content, (folder / "index.html").read_text()


@pytest.fixture
def rng():
  return np.random.default_rng(7)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """One report of all nets: (workdir, sweep's result, search's, content)."""
  workdir = tmp_path_factory.mktemp("digits")
  experiment = _experiment(**{"data.data_dir": "<script>alert(1)</script>&"})
  result = _write(workdir, np.random.default_rng(3), experiment)
  content, _ = _run(experiment, workdir)
  search = files.read_record(workdir / "search" / "result.json")
  return workdir, result, search, content


def test_tables_hold_the_results(made):
  workdir, result, _, content = made
  page = _Page((workdir / "report" / "index.html").read_text())
  assert list(content["nets"]) == ["found", "uniform", "baseline_1x"]
  assert "data set cifar10 3.0.2" in page.text
  for name, net in result["nets"].items():
    shown, vector = content["nets"][name], np.array(_WIDTHS[name])
    inputs = np.append(32, vector[:-1])  # 32 planes of one channel
    assert shown["weights"] == (9 * inputs * vector).sum() + 10 * vector[-1]
    assert f"\n{shown['arrays']}\n" in page.text
    # Wilson's interval, written out.
    n, z = 360, stats.norm.ppf(0.975)
    p = net["clean"]
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2) / (1 + z**2 / n)
    low, high = 100 * (middle - half), 100 * (middle + half)
    assert f"\n{100 * p:.2f} [{low:.2f}, {high:.2f}]\n" in page.text
    for scenario, entries in net["sweeps"].items():
      for index, entry in enumerate(entries):
        _check_level(entry, shown["sweeps"][scenario], index, page)


def _check_level(entry, sweep, index, page):
  accuracy = np.array(entry["accuracy"])
  if len(accuracy) == 1:  # nothing random: no distribution
    assert f"\n{100 * accuracy[0]:.2f}\nall chips alike\n" in page.text
    return
  mean, p5 = accuracy.mean(), np.quantile(accuracy, 0.05)
  low, high = intervals.mean_interval(accuracy, 0, 1)
  assert sweep["level"][index] == entry["level"]
  np.testing.assert_allclose(sweep["mean"][index], mean)
  np.testing.assert_allclose(sweep["p5"][index], p5)
  np.testing.assert_allclose(sweep["ci95"][index], (low, high), atol=1e-12)
  text = f"{100 * mean:.2f} [{100 * low:.2f}, {100 * high:.2f}]"
  assert f"\n{text}\n5th pct. {100 * p5:.2f}\n" in page.text


def test_costs_are_those_of_the_widths(made):
  """Of a net's own table, by component, and as used cells."""
  workdir, *_, content = made
  page = _Page((workdir / "report" / "index.html").read_text())
  experiment = _experiment()
  assert content["hardware"]["technology"] == "neurosim_22nm"
  for name in _SEARCHED:
    net, vector = content["nets"][name], content["vectors"][name]
    costs = experiment.exact_costs(_WIDTHS[name])
    assert {k: net[k] for k in costs} == costs == vector["cost"]
    cells = [
      units.quantity(kind, costs[cost.KINDS[kind].field])
      for kind in ("energy", "latency", "area")
    ]
    assert "\n" + "\n".join(cells) + "\n" in page.text
    for field in ("energy_joule", "area_m2"):
      parts = [part[field] for part in vector["components"].values()]
      np.testing.assert_allclose(sum(parts), costs[field])
    # The second of the first block: 9 w_2 rows, w_3 columns; the head.
    rows, columns = 9 * _WIDTHS[name][1], _WIDTHS[name][2]
    tiles = -(-rows // 64) * -(-columns // 64)
    np.testing.assert_allclose(
      vector["cells"][2], rows * columns / (4096 * tiles)
    )
    used = 100 * costs["weights"] / (4096 * costs["arrays"])
    assert f"{looks.net_name(name)} {used:.1f} %" in page.text
  array = content["vectors"]["found"]["components"]["array"]["energy_joule"]
  share = array / content["nets"]["found"]["energy_joule"]
  assert f"\narrays\n{1e6 * array:.3g} µJ\n{100 * share:.2f}\n" in page.text
  # Published vectors of the depth stand beside the nets, and are none.
  published = [n for n, v in content["vectors"].items() if not v["compared"]]
  assert published == [n for n in widths_lib.PRESETS if n[:8] == "resnet20"]


def test_search_table_holds_the_finalists(made):
  workdir, _, search, content = made
  page = _Page((workdir / "report" / "index.html").read_text())
  assert {k: content["search"][k] for k in search} == search
  for entries in search["finalists"].values():
    best = max(entry["score"] for entry in entries)
    mean = np.mean([entry["score"] for entry in entries])
    assert f"\n{100 * best:.2f}\n{100 * mean:.2f}\n" in page.text
    assert entries[0]["score"] == best
    share = 100 * entries[0]["cost"]["arrays"] / search["budgets"][0]
    assert f"\n{entries[0]['cost']['arrays']} ({share:.1f} %)\n" in page.text
  assert [row["rival"] for row in content["search"]["comparisons"]] == [
    "random",
    "uniform",
  ]
  for rival in ("random", "uniform"):
    pair = [search["finalists"][m][0]["chips"] for m in ("predictor", rival)]
    low, high = intervals.mean_interval(np.subtract(*pair))
    gain = np.mean(np.subtract(*pair))
    verdict = "ahead" if low > 0 else "behind" if high < 0 else "undecided"
    text = f"{100 * gain:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
    name = {"random": "random search"}.get(rival, rival)
    assert f"\n{name}\n16\n{text}\n{verdict}\n" in page.text


@pytest.mark.parametrize("kind", ["energy", "macs", "area"])
def test_several_budgets_and_all_methods(rng, tmp_path, kind):
  names = rng.permutation(methods.NAMES).tolist()
  experiment = _experiment(
    **{"search.methods": tuple(names), "space.technology": "isaac_32nm"}
  )
  limits = {"latency": 2e-3, "interval": 2.5e-4}
  _write(
    tmp_path,
    rng,
    experiment,
    False,
    kind,
    shares=(0.8, 1.0, 1.3),
    limits=limits,
  )
  content, page = _run(experiment, tmp_path)
  text, search = _Page(page).text, content["search"]
  assert {"search.png", "front.png"} < set(content["files"])
  assert "at most 2.00 ms of latency, 250 µs between images by isaac" in text
  assert "each of 7 methods scored 6,400 width vectors" in text
  assert "as many within each of 2 other budgets" in text
  field = cost.KINDS[kind].field
  shown = looks.method_looks(names)
  for budget, most in enumerate(search["budgets"]):
    assert f"\n{units.quantity(kind, most)}\n" in text
    for name in (*names, "uniform"):
      entry = outcome.best(search, name, budget)
      if entry is None:
        assert (name, budget) == ("uniform", 0)
        continue
      spent = units.quantity(kind, entry["cost"][field])
      share = f"({100 * entry['cost'][field] / most:.1f} %)"
      row = text[text.index(f"\n{units.quantity(kind, most)}\n") :]
      row = row[row.index(f"\n{shown[name].name}\n") :]
      assert row.split("\n")[4] == units.percent(entry["score"])
      assert row.split("\n")[8] == f"{spent} {share}"
  # Against every other method, at the main budget.
  comparisons = {row["rival"]: row for row in search["comparisons"]}
  assert list(comparisons) == [*names[1:], "uniform"]
  for name, row in comparisons.items():
    pair = [
      next(e for e in search["finalists"][n] if e["budget"] == 1)["chips"]
      for n in (names[0], name)
    ]
    np.testing.assert_allclose(row["difference"], np.mean(np.subtract(*pair)))
  assert f"found net ({shown[names[0]].name}) minus" in text
  for caption in ("Robust score on fresh chips against", "Energy of one image"):
    (line,) = (x for x in text.split("\n") if x.startswith(caption))
    assert "isaac_32nm" in line
    assert ("dotted: the budgets" in line) == (
      kind == "energy" and caption.startswith("Robust")
    )


def test_the_front_is_drawn_with_its_budgets(rng, tmp_path):
  experiment = _experiment()
  _write(tmp_path, rng, experiment, False, "energy", shares=(0.7, 1.0))
  content, _ = _run(experiment, tmp_path)
  search = content["search"]
  (panel,) = figures_search.front(content).axes
  drawn = [np.array(line.get_data(), float).T for line in panel.lines]
  front = [(1e6 * p["energy_joule"], 100 * p["score"]) for p in search["front"]]
  assert any(
    line.shape == (len(front), 2) and np.allclose(line, front) for line in drawn
  )
  for budget in search["budgets"]:
    assert any(np.allclose(line[:, 0], 1e6 * budget) for line in drawn)
  points = sum(map(len, search["finalists"].values()))
  assert sum(map(len, drawn)) == points + len(front) + 1 + 2 * 2
  assert "neurosim_22nm" in panel.get_xlabel()


def test_a_search_of_one_method_without_a_rival(rng, tmp_path):
  experiment = _experiment(
    **{"search.methods": ("evolution",), "train.nets": ("found",)}
  )
  _write(tmp_path, rng, experiment, False)
  path = tmp_path / "search" / "result.json"
  search = files.read_record(path)
  search["finalists"]["uniform"] = []
  search["best"]["uniform"] = [None]
  files.write_record(path, search)
  content, page = _run(experiment, tmp_path)
  assert content["search"]["comparisons"] == []
  text = _Page(page).text
  assert "crossbar arrays, evolution scored 6,400 width vectors." in text
  assert "best of others" not in text
  assert "uniform scaling is" not in text.split("What the numbers mean")[0]


def test_differences_are_paired(made):
  _, result, _, content = made
  nets = result["nets"]
  rows = content["comparisons"]
  assert len(rows) == 2 * (5 + 4 + 6)  # no level 0: all chips are one there
  for row in rows:
    first, second = (
      next(
        entry["accuracy"]
        for entry in nets[net]["sweeps"][row["scenario"]]
        if entry["level"] == row["level"]
      )
      for net in ("found", row["rival"])
    )
    np.testing.assert_allclose(
      row["difference"], np.mean(first) - np.mean(second), atol=1e-12
    )
    # The studentised bootstrap's, about as wide as Student's.
    np.testing.assert_allclose(
      row["ci95"], intervals.mean_interval(np.subtract(first, second))
    )
    reference = stats.ttest_rel(first, second).confidence_interval(0.95)
    width = reference.high - reference.low
    np.testing.assert_allclose(row["ci95"], reference, atol=0.3 * width)


def test_paired_difference_by_hand():
  """Differences 0.1, 0.2, 0.3: t = 4.30265 on 2 degrees of freedom."""
  row = intervals.paired_difference([0.5, 0.7, 0.9], [0.4, 0.5, 0.6, 0.1])
  half = 4.30265 * 0.1 / 3**0.5
  np.testing.assert_allclose(row["ci95"], [0.2 - half, 0.2 + half], rtol=1e-5)
  assert (row["chips"], row["verdict"]) == (3, "undecided")
  assert intervals.paired_difference([0.2, 0.2], [0.2, 0.2])["ci95"] == [0, 0]


def _content(verdicts, widths=(16, 16), rival="uniform", bits=1):
  """Content for a headline: one scenario a verdict against `rival`."""
  numbers = {
    "ahead": (0.02, [0.01, 0.03]),
    "behind": (-0.02, [-0.03, -0.01]),
    "undecided": (0.0, [-0.01, 0.01]),
  }
  scenarios = ("stuck_off", "stuck_on", "variation")
  rows = []
  for level in (0.5, 1.0, 2.0):
    for scenario, verdict in zip(scenarios, verdicts, strict=True):
      if level != 1:  # not the harshest, or hopeless: must not be told
        verdict = "behind" if verdict == "ahead" else "ahead"
      difference, ci95 = numbers[verdict]
      rows.append(
        dict(
          rival=rival,
          scenario=scenario,
          level=level,
          difference=difference,
          ci95=ci95,
          verdict=verdict,
        )
      )
  return {
    "reference": "found",
    "nets": {
      "found": {
        "widths": [8, 24],
        "weight_bits": 1,
        "arrays": 30,
        "clean": 0.9,
        "sweeps": {
          scenario: {"level": [0.5, 1.0, 2.0], "mean": [0.8, 0.5, 0.4]}
          for scenario in scenarios
        },
      },
      rival: {
        "widths": list(widths),
        "weight_bits": bits,
        "arrays": 20,
        "sweeps": {},
      },
    },
    "search": {"cost": "arrays"},
    "comparisons": rows,
  }


@pytest.mark.parametrize(
  "verdicts, claim",
  [
    (
      "ahead ahead ahead",
      "The found net beats the uniform net at the harshest",
    ),
    ("behind behind behind", "The found net loses to the uniform net at the"),
    (
      "ahead behind undecided",
      "Mixed: against the uniform net, the found net is ahead at 1, behind at "
      "1, undecided at 1 of 3 harshest defect levels",
    ),
    (
      "undecided undecided undecided",
      "Undecided: the found net can't be told from the uniform net at the "
      "harshest level of any defect",
    ),
    (
      "behind undecided undecided",
      "No win: against the uniform net, the found net is behind at 1, "
      "undecided at 2 of 3",
    ),
  ],
)
def test_headline_says_who_wins(verdicts, claim):
  verdicts = verdicts.split()
  (line,) = wording.headline(_content(verdicts))
  assert line.startswith(claim)
  assert "(30 against 20 crossbar arrays, 1.50 times the cost)" in line
  shown = {
    "ahead": "+2.00 [+1.00, +3.00]",
    "behind": "-2.00 [-3.00, -1.00]",
    "undecided": "0.00 [-1.00, +1.00]",
  }
  texts = ("100 % stuck off", "100 % stuck on", "variation γ = 1")
  for verdict, text in zip(verdicts, texts, strict=True):
    assert f"{shown[verdict]} points at {text}" in line


def test_headline_of_an_energy_budget_names_the_technology():
  content = _content(["ahead"] * 3)
  content["search"]["cost"] = "energy"
  content["hardware"] = {"technology": "isaac_32nm"}
  for net, energy in (("found", 3.1e-5), ("uniform", 2e-5)):
    content["nets"][net]["energy_joule"] = energy
  (line,) = wording.headline(content)
  claim = "31.0 µJ against 20.0 µJ of energy by isaac_32nm, 1.55 times the cost"
  assert f"({claim})" in line


def test_headline_of_equal_widths():
  (line,) = wording.headline(_content(["ahead"] * 3, widths=(8, 24)))
  assert line == "The found net has the same widths as the uniform net."


def test_headline_against_an_8_bit_net_of_equal_widths():
  content = _content(["ahead"] * 3, (8, 24), rival="found_int8", bits=8)
  (line,) = wording.headline(content)
  assert line.startswith("The found net beats the 8-bit found net at the")
  assert "30 crossbar arrays of 1-bit weights against 20 of 8-bit" in line
  assert "times the cost" not in line
  content["nets"]["found_int8"]["arrays"] = None  # not counted
  (line,) = wording.headline(content)
  assert "every defect (1-bit against 8-bit weights): +2.00" in line


def test_a_found_net_that_loses(rng, tmp_path):
  experiment = _experiment()
  _write(tmp_path, rng, experiment, found=0.4)
  path = tmp_path / "search" / "result.json"
  search = files.read_record(path)
  search["best"]["random"][0]["chips"] = [0.9 + 0.01 * i for i in range(9)]
  files.write_record(path, search)
  content, page = _run(experiment, tmp_path)
  versus_uniform, versus_baseline = content["headline"]
  assert versus_uniform.startswith("The found net loses to the uniform net")
  assert versus_baseline.startswith("The found net beats the 1x baseline net")
  assert versus_uniform in _Page(page).text
  assert "is behind random search" in _Page(page).text


def test_page_stands_alone_and_is_escaped(made):
  workdir, _, _, content = made
  text = (workdir / "report" / "index.html").read_text()
  page = _Page(text)
  assert "<script" not in text
  assert "<script>alert(1)</script>&" in page.text
  assert len(page.links) == len(figures.FILES)
  for link, name in zip(page.links, content["files"][1:], strict=True):
    kind, data = link.split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == (workdir / "report" / name).read_bytes()
  assert "url(" not in text
  assert "@import" not in text


def test_a_technology_of_a_file_is_named_and_escaped(rng, tmp_path):
  content = {"preset": "isaac_32nm", "name": "<i>mine</i>"}
  path = tmp_path / "technology.json"
  path.write_text(json.dumps(content))
  experiment = _experiment(
    **{"space.technology": str(path), "train.nets": ("found",)}
  )
  _write(tmp_path, rng, experiment, False, "energy")
  content, page = _run(experiment, tmp_path)
  assert content["hardware"]["technology"] == "<i>mine</i>"
  assert "of energy by <i>mine</i>, each of 2 methods" in _Page(page).text
  assert "<i>" not in page


def test_figures_need_only_report_json(made):
  workdir, _, _, content = made
  drawn = figures.draw(content)
  assert tuple(drawn) == figures.FILES
  for name, data in drawn.items():
    assert data == (workdir / "report" / name).read_bytes()


@pytest.fixture(scope="module")
def named(tmp_path_factory):
  """A report of named nets, no search: (sweep's result, content, page)."""
  workdir = tmp_path_factory.mktemp("named")
  rng = np.random.default_rng()
  experiment = _experiment(**{"train.nets": _NAMED[::-1]})
  result = _write(workdir, rng, experiment)
  content, text = _run(experiment, workdir)
  return result, content, _Page(text)


def test_no_word_of_a_search_that_was_not_needed(named):
  _, content, page = named
  assert content["search"] is content["space"] is None
  assert content["files"] == [
    "index.html",
    "robustness.png",
    "widths.png",
    "utilisation.png",
    "components.png",
    "training.png",
  ]
  before, configuration = page.text.split("\nConfiguration\n")
  shown = before + configuration.split("\nWhat the numbers mean\n")[1]
  for word in (
    "search space",
    "policy",
    "Super-net",
    "super-net",
    "found",
    "budget",
  ):
    assert word not in shown, word
  assert "search" not in "".join(figures.draw(content))


def test_the_first_binary_net_is_compared_with_the_others(named):
  result, content, page = named
  # 8-bit and float nets follow, whatever the order of training.
  assert list(content["nets"]) == [
    "resnet20_1x",
    "resnet20_hawis_a",
    "resnet20_1x_int8",
    "resnet20_1x_float",
  ]
  assert content["reference"] == "resnet20_1x"
  assert content["missing"] == []  # a float net meets no chips
  rivals = [row["rival"] for row in content["comparisons"]]
  assert set(rivals) == {"resnet20_hawis_a", "resnet20_1x_int8"}
  row = content["comparisons"][-1]
  first, second = (
    result["nets"][net]["sweeps"][row["scenario"]][-1]["accuracy"]
    for net in ("resnet20_1x", row["rival"])
  )
  np.testing.assert_allclose(
    row["ci95"], intervals.mean_interval(np.subtract(first, second))
  )
  better, worse = content["headline"]
  start = "The 1x (ResNet-20) net "
  assert better.startswith(f"{start}loses to the HAWIS-A (ResNet-20) net at")
  assert worse.startswith(f"{start}beats the 8-bit 1x net at")
  arrays = result["nets"]["resnet20_1x"]["arrays"]
  claim = f"{arrays} crossbar arrays of 1-bit weights against {arrays} of 8-bit"
  assert claim in worse
  assert "1x (ResNet-20) minus the other net" in page.text


def test_a_float_net_has_accuracy_and_no_cost(named):
  result, content, page = named
  clean = 100 * result["nets"]["resnet20_1x_float"]["clean"]
  low, high = content["nets"]["resnet20_1x_float"]["clean_ci95"]
  interval = f"{clean:.2f} [{100 * low:.2f}, {100 * high:.2f}]"
  cells = ["float, 1x", "float", *"------", "360", interval]
  assert "\n".join(cells) in page.text
  assert "float, 1x [%]" not in page.text


def test_only_float_nets(rng, tmp_path):
  experiment = _experiment(**{"train.nets": ("resnet20_1x_float",)})
  _write(tmp_path, rng, experiment)
  content, page = _run(experiment, tmp_path)
  (line,) = content["headline"]
  assert line.startswith("No net was measured on chips. Without defects: float")
  assert content["reference"] is None
  # Nor are there 1-bit nets, whose costs and cells could be shown.
  assert content["files"] == ["index.html", "widths.png", "training.png"]
  assert line in _Page(page).text


def test_validation_has_steps_of_its_own(named):
  _, content, page = named
  for net in _NAMED:
    curve = content["curves"][f"train/{net}"]
    assert curve["loss"]["step"] == list(range(20, 4001, 20))
    points = curve["accuracy_validation"]
    assert points["step"] == list(range(200, 4001, 200))
    last = f"{looks.net_name(net)} {100 * points['value'][-1]:.2f} % at step"
    assert f"{last} 4,000" in page.text


def test_a_subset_of_the_test_images_is_told(rng, tmp_path):
  experiment = _experiment()
  experiment.splits.test = range(5000)
  _write(tmp_path, rng, experiment, curves=False)
  content, page = _run(experiment, tmp_path)
  assert content["data"] == {
    "name": "cifar10",
    "version": "3.0.2",
    "test_images": 5000,
  }
  assert "360 of 5,000" in page


def test_stages_of_a_resnet18(rng, tmp_path):
  """Every stage starts where the published 1x widths double."""
  nets = ("resnet18_1x", "resnet18_hawis_b", "resnet18_1x_float")
  overrides = {"network.family": "imagenet", "network.depth": 18}
  experiment = _experiment(**overrides, **{"train.nets": nets})
  result = _write(tmp_path, rng, experiment, curves=False)
  content, _ = _run(experiment, tmp_path)
  vector = np.array(result["nets"]["resnet18_1x"]["widths"])
  doubled = np.flatnonzero(np.diff(vector)) + 2  # layers count from 1
  assert content["stage_starts"] == [1, *doubled]
  assert "widths.png" in content["files"]


def test_looks_of_eight_nets_differ():
  nets = (*_NAMED, *_SEARCHED, "another")
  shown = looks.net_looks(nets)
  assert list(shown) == list(nets)
  for field in ("name", "color", "marker"):
    assert len({getattr(look, field) for look in shown.values()}) == 8
  alone = looks.net_looks(["resnet20_hawis_a"])["resnet20_hawis_a"]
  assert alone.color == looks.method_looks(["random", "ppo"])["random"].color
  assert len(looks.net_looks(map(str, range(20)))) == 20


@pytest.mark.parametrize(
  "net, name",
  [
    ("found", "found"),
    ("uniform_float", "float, uniform"),
    ("baseline_1x", "1x baseline"),
    ("baseline_1x_int8", "8-bit, 1x baseline"),
    ("resnet18_hawis_b", "HAWIS-B (ResNet-18)"),
    ("resnet20_hawis_a_int8", "8-bit, HAWIS-A"),
    ("resnet32_1x", "1x (ResNet-32)"),
    ("resnet20_4x_float", "float, 4x"),
    ("mine", "mine"),
  ],
)
def test_names(net, name):
  assert looks.net_name(net) == name


def test_looks_of_all_methods_differ():
  shown = looks.method_looks(methods.NAMES)
  assert list(shown) == [*methods.NAMES, "uniform"]
  for field in ("name", "color", "marker"):
    assert len({getattr(look, field) for look in shown.values()}) == 8


def test_every_preset_has_a_name_of_its_own():
  names = {looks.net_name(net) for net in widths_lib.PRESETS}
  assert len(names) == len(widths_lib.PRESETS)
  assert not any("_" in name for name in names)


def test_a_finished_report_is_left_alone(rng, tmp_path):
  experiment = _experiment()
  result = _write(tmp_path, rng, experiment)
  before, _ = _run(experiment, tmp_path)
  folder = tmp_path / "report"

  def stamps():
    return {f: f.stat().st_mtime_ns for f in folder.iterdir()}

  first = stamps()
  assert {f.name for f in first} == {
    *figures.FILES,
    "index.html",
    "report.json",
  }
  _run(experiment, tmp_path)
  assert stamps() == first
  (folder / "search.png").unlink()
  (folder / "report.json").write_text("{")
  after, _ = _run(experiment, tmp_path)
  assert after["digest"] == before["digest"]
  assert {f.name for f in stamps()} == {f.name for f in first}
  # Other results: another report, and no picture of what is gone.
  result["nets"]["found"]["clean"] = 0.5
  path = tmp_path / "robustness" / "result.json"
  files.write_record(path, result)
  (tmp_path / "metrics.jsonl").unlink()
  changed, page = _run(experiment, tmp_path)
  assert changed["digest"] != before["digest"]
  assert "50.00 [" in page
  assert not (folder / "training.png").exists()


def test_free_running_metrics_do_not_remake_it(rng, tmp_path):
  experiment = _experiment()
  _write(tmp_path, rng, experiment)
  before = report.collect(experiment, tmp_path)["digest"]
  line = {"time": 1.0, "stage": "robustness", "step": 9, "values": {"x": 1.0}}
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write(json.dumps(line) + "\n")
  assert report.collect(experiment, tmp_path)["digest"] == before


@pytest.mark.parametrize(
  "net, name", [("found", "found"), ("uniform", "uniform")]
)
def test_one_net_alone(rng, tmp_path, net, name):
  experiment = _experiment(**{"train.nets": (net,)})
  _write(tmp_path, rng, experiment, curves=False)
  content, page = _run(experiment, tmp_path)
  assert content["comparisons"] == []
  assert content["missing"] == []
  line = f"There is no other net on chips to compare the {name} net with."
  assert content["headline"][0].startswith(line)
  assert _Page(page).links
  assert "training.png" not in content["files"]


def test_an_unfinished_sweep_says_what_is_missing(rng, tmp_path):
  experiment = _experiment()
  result = _write(tmp_path, rng, experiment, curves=False)
  del result["nets"]["baseline_1x"]
  sweeps = result["nets"]["uniform"]["sweeps"]
  del sweeps["variation"]
  del sweeps["stuck_on"][-1]
  path = tmp_path / "robustness" / "result.json"
  files.write_record(path, result)
  content, page = _run(experiment, tmp_path)
  assert "uniform: 2 % stuck on; uniform: variation γ = 0; " in page
  assert content["missing"][0] == "1x baseline: everything"
  assert len(content["missing"]) == 1 + 1 + 7
  # Compared at the harshest level that both have.
  (line,) = content["headline"]
  assert "at 1.5 % stuck on" in line
  assert "variation" not in line


def test_a_net_without_a_colour_of_its_own(rng, tmp_path):
  experiment = _experiment()
  result = _write(tmp_path, rng, experiment, curves=False)
  result["nets"]["int8"] = result["nets"].pop("baseline_1x")
  path = tmp_path / "robustness" / "result.json"
  files.write_record(path, result)
  content, page = _run(experiment, tmp_path)
  assert list(content["nets"]) == ["found", "uniform", "int8"]
  assert "<th>minus int8</th>" in page


def test_missing_results_are_named(rng, tmp_path):
  experiment = _experiment()
  _write(tmp_path, rng, experiment)
  path = tmp_path / "robustness" / "result.json"
  files.write_record(path, {"format": 2, "nets": {}})
  with pytest.raises(errors.InputError, match="got no net"):
    _run(experiment, tmp_path)
  path.unlink()
  with pytest.raises(errors.InputError, match="--stages robustness first"):
    _run(experiment, tmp_path)
  _write(tmp_path, rng, experiment)
  (tmp_path / "search" / "result.json").unlink()
  with pytest.raises(errors.InputError, match="--stages search first"):
    _run(experiment, tmp_path)
  assert not (tmp_path / "report").exists()


def test_a_folder_that_cannot_be_written(rng, tmp_path):
  experiment = _experiment()
  _write(tmp_path, rng, experiment, curves=False)
  (tmp_path / "report").write_text("a file")
  with pytest.raises(errors.InputError, match="can't write"):
    _run(experiment, tmp_path)


def test_only_the_recording_process_writes(tmp_path):
  silent = types.SimpleNamespace(recording=False)
  report.run(_experiment(), tmp_path, silent)
  assert not list(tmp_path.iterdir())


def test_name_and_command(made, monkeypatch):
  workdir, *_, content = made
  assert content["name"] == workdir.name
  argv = [
    "/x/hawis_jax/main.py",
    "--config=configs/tiny.py:a",
    "--stages",
    "all",
  ]
  monkeypatch.setattr(sys, "argv", argv)
  again = report.collect(_experiment(), workdir)
  assert again["name"] == "tiny"
  assert again["command"] == (
    "python -m hawis_jax.main --config=configs/tiny.py:a --stages all"
  )


@pytest.mark.parametrize(
  "count, text",
  [
    (9999, "9,999"),
    (10_000, "10.0 k"),
    (273_200, "273 k"),
    (999_600, "1.00 M"),
    (27_900_000_000, "27.9 G"),
    (2**53, "9.01 P"),
  ],
)
def test_amounts(count, text):
  assert units.amount(count) == text


@pytest.mark.parametrize(
  "kind, value, text",
  [
    ("arrays", 240.0, "240"),
    ("macs", 1.4e7, "14.0 M"),
    ("energy", 5.534e-4, "553 µJ"),
    ("energy", 9.996e-10, "1.00 nJ"),
    ("latency", 4.21e-5, "42.1 µs"),
    ("area", 1.352e-6, "1.35 mm²"),
    ("area", 0.0, "0"),
    ("energy", None, "-"),
  ],
)
def test_quantities(kind, value, text):
  assert units.quantity(kind, value) == text
