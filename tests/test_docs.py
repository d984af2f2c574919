"""The documentation: what it names exists, what it prints runs."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest
from scipy import stats

import hawis_jax as hx
from hawis_jax import main
from hawis_jax.config import settings

_ROOT = pathlib.Path(__file__).parents[1]
_PAGES = sorted(
  path
  for pattern in ("*.md", "docs/**/*.md", "launch/*.md")
  for path in _ROOT.glob(pattern)
  if path.name != "CHANGELOG.md"  # it tells of what was, too
)
_FENCE = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_MODULE = re.compile(r"python3? -m ((?:hawis_jax|benchmarks)[\w.]*)")
_FILE = re.compile(
  r"(?<![\w/.~$<{:-])((?:\.\./)*(?:benchmarks|configs|docs|examples|hawis_jax|"
  r"launch|tests)/[\w./-]*\w\.(?:py|md|sh|yaml))"
)


def _anchors(path):
  """The anchors of a page's headings, as GitHub and MyST make them."""
  headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", path.read_text()), re.M)
  plain = (re.sub(r"[^\w\- ]", "", line.lower()) for line in headings)
  return {line.strip().replace(" ", "-") for line in plain}


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.stem)
def test_what_a_page_names_exists(page):
  """Links and their anchors, modules that are run, files of the project."""
  text, missing = page.read_text(), []
  for link in _LINK.findall(_FENCE.sub("", text)):
    if re.match(r"[a-z]+:", link):
      continue
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    if not target.exists() or (anchor and anchor not in _anchors(target)):
      missing.append(link)
  for name in _MODULE.findall(text):
    path = _ROOT / name.rstrip(".").replace(".", "/")
    package = path.is_dir() and (path / "__main__.py").is_file()
    if not package and not path.with_suffix(".py").is_file():
      missing.append(f"-m {name}")
  for name in _FILE.findall(text):
    places = (_ROOT / name, page.parent / name)
    if not any(path.is_file() for path in places):
      missing.append(name)
  assert not missing


def _snippets(page):
  """Python that a page shows; each continues what stands before it."""
  text = (_ROOT / "docs" / f"{page}.md").read_text()
  return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def _run_snippets(page, **names):
  snippets = _snippets(page)
  for snippet in snippets:
    exec(compile(snippet, f"docs/{page}.md", "exec"), names)  # noqa: S102
  assert snippets
  return names


def test_snippets_of_costs_and_of_own_things_run(tmp_path, monkeypatch, rng):
  monkeypatch.chdir(tmp_path)
  found = _run_snippets("cost")["found"]
  assert found.arrays == 1020 and found.energy_joule == pytest.approx(
    65.1e-6, 1e-3
  )
  lines = ["cell,target,time,read"]
  for cell in range(64):
    target = (1e-6, 2e-5)[cell % 2]
    read = target * (1 + 0.05 * rng.normal())
    lines += [f"a{cell},{target},{t},{read * t**-0.01}" for t in (20, 1000)]
  (tmp_path / "cells.csv").write_text("\n".join(lines))
  images = rng.integers(0, 256, (20, 8, 8), np.uint8)
  arrays = dict.fromkeys(("x_train", "x_test"), images)
  arrays |= dict.fromkeys(("y_train", "y_test"), np.arange(20) % 10)
  _run_snippets("own_data_and_devices", **arrays)
  made = {path.name for path in tmp_path.iterdir()}
  assert made >= {"fit.svg", "mine.json", "mine.npz", "latency.npz"}


@pytest.mark.slow
def test_snippets_of_robust_nets_and_exports_run(
  after, tiny, tmp_path, monkeypatch
):
  (tmp_path / "runs").mkdir()
  after("train").rename(tmp_path / "runs" / "digits")
  monkeypatch.chdir(tmp_path)
  names = _run_snippets("export")
  assert (tmp_path / "found_packed.npz").exists()
  assert names["text"].startswith("* 64 x 64 crossbar, wire 1.56 ohm")
  key, training = jax.random.key(0), (tiny.images[:128], tiny.labels[:128])
  images, labels = tiny.images[:64], tiny.labels[:64]
  images_of = dict(net=names["net"], variables=names["variables"])
  names = _run_snippets(
    "robust_nets",
    **images_of,
    **dict(key=key, chip_key=key, training=training),
    **dict(images=images, labels=labels, device=names["device"]),
  )
  settings.validate(names["c"])
  assert names["known"]["params"]


def test_snippet_of_a_notebook_runs(monkeypatch):
  monkeypatch.chdir(_ROOT)
  run, called = main.run, []
  monkeypatch.setattr(main, "run", called.append)
  _run_snippets("quick_start")
  (argv,) = called
  assert run([*argv, "--stages=no"]) == 2  # the rest of it is taken


def test_api_page_has_every_public_name():
  named = re.findall(
    r":: hawis_jax\.(\w+)", (_ROOT / "docs/api.md").read_text()
  )
  assert sorted(named) == sorted(set(hx.__all__) - {"__version__"})


def test_readme_prints_the_example_that_runs():
  """`examples/` runs in test_public.py."""
  blocks = re.findall(
    r"```python\n(.*?)```", (_ROOT / "README.md").read_text(), re.DOTALL
  )
  example = (_ROOT / "examples" / "evaluate_chips.py").read_text()
  assert [block in example for block in blocks] == [True]


_NETS = {
  "found": "found, 1-bit",
  "uniform": "uniform, 1-bit",
  "baseline_1x": "1x widths, 1-bit",
  "baseline_1x_int8": "1x widths, 8-bit",
  "baseline_1x_float": "1x widths, float",
}
# Columns: training, statistics, scenario, severity; a page's has no training.
_README = [
  (*way, *place)
  for place in (("variation", 0.7), ("stuck", 0.0175))
  for way in (("plain", "fixed"), ("chips", "chip"))
]
_PAGE = [
  ("fixed", "variation", 0.0),
  ("chip", "variation", 0.5),
  ("fixed", "variation", 0.7),
  ("design", "variation", 0.7),
  ("chip", "variation", 0.7),
  ("chip", "variation", 1.1),
  ("fixed", "stuck", 0.0175),
  ("chip", "stuck", 0.0175),
  ("fixed", "a day", 1.0),
  ("chip", "a day", 1.0),
  ("fixed", "wires", 1.0),
  ("chip", "wires", 1.0),
]


_CIFAR10 = [
  ("plain", "fixed", "variation", 0.0),
  ("chips", "fixed", "variation", 0.0),
  *_README,
]


def _lines(rows, columns, trainings=None):
  """A table's lines, of what `benchmarks/robust_training.py` wrote.

  With `trainings`, {value: words}, each of a net's has a line.
  """
  found = {
    (row["net"], row["training"], row["statistics"], row["scenario"])
    + (round(row["severity"], 4),): row
    for row in rows
  }

  def line(words, places):
    ends = [
      [100 * found[place][key] for key in ("mean", "low", "high")]
      if place in found
      else None
      for place in places
    ]
    cells = [
      "{:.1f} ({:.1f}, {:.1f})".format(*each) if each else "-" for each in ends
    ]
    return f"| {' | '.join([words, *cells])} |"

  nets = {
    net: words
    for net, words in _NETS.items()
    if any(net == x[0] for x in found)
  }
  if trainings is None:
    return [
      line(words, [(net, *column) for column in columns])
      for net, words in nets.items()
    ]
  return [
    line(f"{words}, {how}", [(net, training, *column) for column in columns])
    for net, words in nets.items()
    for training, how in trainings.items()
  ]


@pytest.mark.parametrize(
  "page, mark, path, columns, trainings",
  [
    ("README.md", "robust_training", "robust_training.json", _README, None),
    (
      "docs/robust_nets.md",
      "robust_training",
      "robust_training.json",
      _PAGE,
      {"plain": "plain", "chips": "on chips"},
    ),
    ("README.md", "cifar10_small", "cifar10_small/result.json", _CIFAR10, None),
  ],
)
def test_pages_have_the_figures_of_the_last_run(
  page, mark, path, columns, trainings
):
  """No other figures than those of the results."""
  rows = json.loads((_ROOT / "results" / path).read_text())["rows"]
  _, shown, _ = (_ROOT / page).read_text().split(f"<!-- {mark} -->")
  assert "\n".join(_lines(rows, columns, trainings)) in shown
  for count in {row["seeds"] for row in rows}:
    assert f"{count} training" in shown


def _rows(name):
  return json.loads((_ROOT / "results" / name).read_text())


def _interval(row):
  return f"{row['mean']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


def test_the_search_page_has_the_regrets_of_the_last_run():
  text = (_ROOT / "docs" / "search.md").read_text()
  rows = _rows("pipeline_regret.json")
  for row in rows:
    parts = [f"{row[p]:.2f}" for p in ("proposal", "ranking", "selection")]
    line = f"| `{row['method']}` | {_interval(row)} | {' | '.join(parts)} |"
    assert line in text
    if row["method"] != "random":
      less = row["less_random"]
      mean = f"{less['mean']:+.2f} ({less['low']:.2f} to {less['high']:.2f})"
      assert f"{line} {mean}, p = {less['p']:.2f} |" in text
  # README has the default method's.
  (row,) = [row for row in rows if row["method"] == "policy"]
  low, high = (f"{row[end]:.1f}" for end in ("low", "high"))
  readme = " ".join((_ROOT / "README.md").read_text().split())
  behind = f"{row['mean']:.1f} points behind the best ({low} to {high}"
  assert f"{behind} over {row['seeds']} seeds)" in readme
  (random,) = [row for row in rows if row["method"] == "random"]
  worse = f"evaluations is {random['mean']:.1f} behind, not shown to be worse"
  assert f"{worse} (p = {row['less_random']['p']:.2f};" in readme


def test_the_search_page_has_what_the_rule_of_selection_brings():
  text = " ".join((_ROOT / "docs" / "search.md").read_text().split())
  before = {
    row["method"]: row["of_seeds"]
    for row in _rows("pipeline_regret_by_score.json")
  }
  gains = {
    row["method"]: np.subtract(before[row["method"]], row["of_seeds"])
    for row in _rows("pipeline_regret.json")
  }
  assert all(gain.mean() > 0 for gain in gains.values())
  for values in (np.mean([*gains.values()], axis=0), gains["policy"]):
    test = stats.ttest_1samp(values, 0)
    low, high = test.confidence_interval()
    assert f"{values.mean():.2f} ({low:.2f} to {high:.2f}" in text


def test_the_search_page_has_the_rank_correlations_of_the_last_run():
  text = (_ROOT / "docs" / "search.md").read_text()
  found = {}
  for row in _rows("rank_correlation.json"):
    if row["quantity"] == "robust" and row["seeds"] > 1:
      nets = found.setdefault((row["net"], row["statistics"]), {})
      nets[row["setting"]] = _interval(row)
  assert len(found) == 13
  seeds = {
    (row["net"], row["statistics"]): row.get("of_seeds")
    for row in _rows("rank_correlation.json")
    if row["quantity"] == "robust" and row["setting"] == "budget"
  }
  chip, fixed = seeds["default", "chip"], seeds["default", "fixed"]
  text = " ".join(text.split())
  for gain, words in (
    (np.subtract(fixed, seeds["without chips", "fixed"]), "brings {} within"),
    (np.subtract(chip, fixed), "Statistics of each chip have {} more"),
  ):
    low, high = stats.ttest_1samp(gain, 0).confidence_interval()
    assert words.format(f"{gain.mean():.2f}") in text
    assert f"({low:.2f} to {high:.2f}" in text
  for (_, statistics), sets in found.items():
    assert f"| {statistics} | {sets['budget']} | {sets['band']} |" in text
