"""The report's pages: HTML that needs no other file and no network."""

from collections.abc import Mapping
import json
import re
from typing import Any

import jinja2
import pandas as pd

from hawis_jax.report import facts
from hawis_jax.report import figures
from hawis_jax.report import style


def files(drawn: Mapping[str, figures.Drawn]) -> dict[str, bytes]:
  """Returns the files of some figures, {name: content}."""
  return {
    f"{name}.{kind}": file if isinstance(file, bytes) else file.encode()
    for name, figure in drawn.items()
    for kind, file in figure._asdict().items()
  }


def render(content: dict, drawn: Mapping[str, figures.Drawn]) -> str:
  """Returns the page of report.json's content and its figures."""
  config = content["config"]
  named = ("search.scenarios", "robustness.scenarios")
  effects = {f for part in named for scenario in config[part] for f in scenario}
  return page(
    "page.html.j2",
    drawn,
    facts.tables(content),
    c=content,
    config=config,
    config_text=json.dumps(config, indent=1),
    answers=facts.answers(content),
    effects=[e for name, e in style.EFFECTS.items() if name in effects],
    bits={net["weight_bits"] for net in content["nets"].values()},
  )


def page(
  template: str,
  drawn: Mapping[str, figures.Drawn],
  tables: Mapping[str, pd.DataFrame],
  **values: Any,
) -> str:
  """Returns a page of a template, its figures, tables and other values."""
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("hawis_jax.report", ""),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  return environment.get_template(template).render(
    figures={name: _inline(name, figure.svg) for name, figure in drawn.items()},
    tables=tables,
    facts=facts,
    style=style,
    **values,
  )


def _inline(name, svg):
  """A figure within the page: its own ids, and colours that CSS can change."""
  svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
  colors = "|".join(style.DARK)
  return re.sub(colors, lambda m: f"var(--c{m[0][1:]}, {m[0]})", svg)
