"""The report's page: the content of report.json in words, tables and HTML."""

import base64
import html
import json
import re

from hawis_jax import definitions
from hawis_jax import looks
from hawis_jax import wording

_STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --soft: #595959;
  --line: #d0d0d0; --back: #ffffff; --box: #f4f4f4; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6e6;
  --soft: #a8a8a8; --line: #444444; --back: #161616; --box: #222222; } }
body { margin: 0 auto; max-width: 64rem; padding: 1.5rem; background:
  var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 0.4rem; }
p { margin: 0.4rem 0; }
.soft, caption, figcaption, small { color: var(--soft); }
.lead { background: var(--box); border-left: 4px solid #d55e00;
  padding: 0.6rem 1rem; margin: 1rem 0; }
.lead p:first-child { font-size: 1.05rem; font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; margin: 0.8rem 0;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: 0.3rem; }
th, td { padding: 0.25rem 0.7rem; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--line); }
td { white-space: pre-line; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { border-bottom: 2px solid var(--text); }
figure { margin: 1rem 0 1.6rem; break-inside: avoid; }
figure img { width: 100%; max-width: 60rem; height: auto; border-radius: 4px; }
figcaption, small { font-size: 13px; }
pre { background: var(--box); padding: 0.7rem; overflow-x: auto;
  font-size: 12px; white-space: pre-wrap; overflow-wrap: anywhere; }
dt { font-weight: 600; margin-top: 0.5rem; }
dd { margin: 0 0 0 1.2rem; }
@media print { :root { --text: #000; --soft: #333; --back: #fff; --box: #fff; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  table { font-size: 7pt; } th, td { padding: 0.2rem 0.3rem; }
  h2 { break-after: avoid; } tr, table { break-inside: avoid; } }
"""


def render(content: dict, pictures: dict[str, bytes]) -> str:
  """Returns the page: one HTML file that needs no other and no network.

  Args:
    content: of report.json.
    pictures: its figures, from `figures.draw`.
  """
  title = f"hawis_jax: {content['name']}"
  data = f"{content['data']['name']} {content['data']['version']}".strip()
  parts = [
    _element("h1", title),
    _element(
      "p",
      f"{content['made']} · seed {content['config']['seed']} · data set {data} "
      f"· ResNet-{content['config']['network.depth']}",
      "soft",
    ),
    _lead(content),
    _element("h2", "Cost and accuracy of the trained nets"),
    _cost_table(content),
    _chip_tables(content, _selected),
    _details("Accuracy at every level", _chip_tables(content, sorted)),
    _figure("robustness.png", content, pictures),
    *_search(content),
    _figure("search.png", content, pictures),
    _element("h2", "Widths and training"),
    _figure("widths.png", content, pictures),
    _details("Width vectors", _widths_table(content)),
    _figure("training.png", content, pictures),
    _element("h2", "How it was made"),
    *_making(content),
    _element("h2", "What the numbers mean"),
    _terms(definitions.definitions(content)),
  ]
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"{_element('title', title)}\n<style>{_STYLE}</style>\n</head>\n<body>\n"
    + "\n".join(part for part in parts if part)
    + "\n</body>\n</html>\n"
  )


def _element(tag, text, css=""):
  """An element of plain text; a line never breaks inside an interval."""
  text = re.sub(r"(\[[-+.\d]+,) ", "\\1\N{NO-BREAK SPACE}", text)
  return f"<{tag}{css and f' class={css}'}>{html.escape(text)}</{tag}>"


def _details(summary, inside):
  return f"<details>{_element('summary', summary)}{inside}</details>"


def _table(caption, header, rows):
  """A table of plain text; a line break in a cell stays one."""
  head = "".join(_element("th", cell) for cell in header)
  body = "".join(
    f"<tr>{''.join(_element('td', cell) for cell in row)}</tr>\n"
    for row in rows
  )
  return (
    f'<div class="wide"><table>{_element("caption", caption)}<thead><tr>{head}'
    f"</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
  )


def _terms(terms):
  """A list of definitions, {term: text}."""
  items = (_element("dt", k) + _element("dd", v) for k, v in terms.items())
  return f"<dl>{''.join(items)}</dl>"


def _figure(name, content, pictures):
  if name not in pictures:
    return ""
  data = base64.b64encode(pictures[name]).decode()
  caption = wording.captions(content)[name]
  return (
    f'<figure><img alt="{html.escape(caption)}" '
    f'src="data:image/png;base64,{data}">{_element("figcaption", caption)}'
    "</figure>"
  )


def _lead(content):
  lines = [_element("p", line) for line in content["headline"]]
  if content["comparisons"]:
    reference = content["reference"]
    lines.append(
      _element(
        "p",
        f"Harshest: the last level that leaves {wording.the_net(reference)} "
        "half its clean accuracy. "
        f"Differences are {looks.net_name(reference)} minus the other net, "
        "paired over the chips that both share, with 95 % intervals over "
        "chips. Each net was trained once: the intervals hold neither the "
        "randomness of training nor test-set error.",
        "soft",
      )
    )
  if content["missing"]:
    missing = f"Not measured yet: {'; '.join(content['missing'])}."
    lines.append(_element("p", missing))
  return f'<div class="lead">{"".join(lines)}</div>'


def _cost_table(content):
  costs = ("arrays", "macs", "weights")
  return _table(
    "Cost of one image's inference; accuracy without defects on the test "
    "images, with its 95 % Wilson interval over images.",
    (
      "net",
      "kind",
      "crossbar arrays",
      "MACs",
      "weights",
      "test images",
      "clean accuracy [%]",
    ),
    [
      (
        looks.net_name(name),
        wording.weight_kind(net["weight_bits"]),
        *(wording.amount(net.get(cost)) for cost in costs),
        wording.test_images(content, net["test_images"]),
        wording.estimate(net["clean"], net["clean_ci95"]),
      )
      for name, net in content["nets"].items()
    ],
  )


def _selected(levels):
  """The middle and the harshest of the levels."""
  levels = sorted(levels)
  return sorted({levels[len(levels) // 2], levels[-1]})


def _chip_tables(content, select):
  """Accuracy on chips, then differences, at the levels `select` picks."""
  nets = {n: net for n, net in content["nets"].items() if net["sweeps"]}
  levels = {}
  for net in nets.values():
    for scenario, sweep in net["sweeps"].items():
      levels.setdefault(scenario, set()).update(sweep["level"])
  rows = [(s, level) for s in levels for level in select(levels[s])]
  if not rows:
    return ""
  accuracy = _table(
    f"Accuracy on defective chips, {wording.chips(content)} each: "
    "mean, its 95 % interval over chips, 5th percentile of the chips, and what "
    "the draw of test images adds: 1.96 standard errors.",
    ("defects", *(f"{looks.net_name(name)} [%]" for name in nets)),
    [
      (
        looks.level_text(*row),
        *(_accuracy(net, *row) for net in nets.values()),
      )
      for row in rows
    ],
  )
  return accuracy + _difference_table(content, rows)


def _accuracy(net, scenario, level):
  sweep = net["sweeps"].get(scenario, {"level": []})
  if level not in sweep["level"]:
    return "-"
  chips, mean, interval, p5, errors = (
    sweep[column][sweep["level"].index(level)]
    for column in ("chips", "mean", "ci95", "p5", "standard_errors")
  )
  images = f"test set ±{wording.percent(1.96 * errors['images'])}"
  if chips == 1:
    return f"{wording.percent(mean)}\nall chips alike\n{images}"
  mean = wording.estimate(mean, interval)
  return f"{mean}\n5th pct. {wording.percent(p5)}\n{images}"


def _difference_table(content, rows):
  """The reference net minus every other, at some (scenario, level)."""
  pairs = {
    (pair["rival"], pair["scenario"], pair["level"]): pair
    for pair in content["comparisons"]
  }
  rivals = list(dict.fromkeys(rival for rival, *_ in pairs))
  # Without random effects there is one chip, and nothing is compared.
  rows = [row for row in rows if any((r, *row) in pairs for r in rivals)]
  if not rows:
    return ""
  name = looks.net_name(content["reference"])
  return _table(
    f"{wording.capital(name)} minus the other net, paired over chips: mean "
    "with its 95 % interval [points]; how wide the interval of different chips "
    "would be.",
    ("defects", *(f"minus {looks.net_name(rival)}" for rival in rivals)),
    [
      (
        looks.level_text(*row),
        *(_difference(pairs.get((rival, *row))) for rival in rivals),
      )
      for row in rows
    ],
  )


def _difference(pair):
  if not pair:
    return "-"
  wider = pair["narrowing"]
  unpaired = f"\nunpaired {wider:.1f}x as wide" if wider else ""
  return f"{wording.difference(pair)}\n{pair['verdict']}{unpaired}"


def _search(content):
  """What the search spent and found: a sentence and a table, if any."""
  search = content["search"]
  if not search:
    return ()
  rows = []
  for name, entries in search["finalists"].items():
    first, searched = entries[0], name in search["trajectory"]
    mean = sum(entry["score"] for entry in entries) / len(entries)
    rows.append(
      (
        looks.METHODS[name].name,
        f"{search['evaluations']:,}" if searched else "-",
        str(len(entries)),
        wording.percent(first["score"]),
        wording.percent(mean),
        f"{100 * first['search_gain']:+.2f}" if searched else "-",
        wording.percent(first["clean"]),
        wording.amount(first["arrays"]),
        wording.amount(first["macs"]),
      )
    )
  table = _table(
    "The methods' finalists, scored again on fresh chips and all validation "
    "images.",
    (
      "method",
      "vectors scored",
      "finalists",
      "robust score of the best [%]",
      "mean of the finalists [%]",
      "the best's gain over random while searching [points]",
      "the best's clean accuracy [%]",
      "arrays",
      "binary MACs",
    ),
    rows,
  )
  outcome = _element("p", wording.search_outcome(content))
  return _element("h2", "The search"), outcome, table


def _widths_table(content):
  return _table(
    "Output channels of every layer of the width vector, stem first.",
    ("net", "widths"),
    [
      (looks.net_name(name), ", ".join(map(str, net["widths"])))
      for name, net in content["nets"].items()
    ],
  )


def _making(content):
  return (
    _element("p", "Made by (finished stages are not repeated):"),
    _element("pre", content["command"]),
    _terms(wording.making(content)),
    _details(
      "Configuration", _element("pre", json.dumps(content["config"], indent=1))
    ),
  )
