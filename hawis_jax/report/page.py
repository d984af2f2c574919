"""The report's page: the content of report.json in words, tables and HTML."""

import base64
import html
import json
import re

from hawis_jax.report import captions
from hawis_jax.report import definitions
from hawis_jax.report import looks
from hawis_jax.report import outcome
from hawis_jax.report import tables
from hawis_jax.report import wording

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
    _table(tables.costs(content)),
    _chips(content, tables.selected),
    _details("Accuracy at every level", _chips(content, sorted)),
    _figure("robustness.png", content, pictures),
    *_search(content),
    _figure("search.png", content, pictures),
    _figure("front.png", content, pictures),
    _element("h2", "Widths and hardware"),
    _figure("widths.png", content, pictures),
    _details("Width vectors", _table(tables.vectors(content))),
    _figure("utilisation.png", content, pictures),
    _figure("components.png", content, pictures),
    _details("Energy and area by component", _table(tables.parts(content))),
    _element("h2", "Training") if content["curves"] else "",
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
  """Something folded away, if there is anything."""
  return inside and f"<details>{_element('summary', summary)}{inside}</details>"


def _table(table):
  """A `tables.Table`, if there is one; a line break in a cell stays one."""
  if not table:
    return ""
  caption, header, rows = table
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
  caption = captions.captions(content)[name]
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


def _chips(content, select):
  """Tables of accuracy on chips at the levels that `select` picks."""
  return "".join(map(_table, tables.on_chips(content, select)))


def _search(content):
  """What the search spent and found: sentences and tables, if any."""
  if not content["search"]:
    return ()
  return (
    _element("h2", "The search"),
    _element("p", " ".join(outcome.sentences(content))),
    _table(outcome.difference_table(content)),
    _table(outcome.table(content)),
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
