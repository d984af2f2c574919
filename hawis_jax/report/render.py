"""The report's page: one HTML file that needs no other and no network."""

import json
import re

import jinja2

from hawis_jax.report import facts
from hawis_jax.report import style


def render(content: dict, figures: dict[str, str]) -> str:
  """Returns the page of report.json's content and its figures (SVG)."""
  loader = jinja2.PackageLoader("hawis_jax.report", "")
  environment = jinja2.Environment(
    loader=loader,
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  config = content["config"]
  named = ("search.scenarios", "robustness.scenarios")
  effects = {f for part in named for scenario in config[part] for f in scenario}
  return environment.get_template("page.html.j2").render(
    c=content,
    config=config,
    config_text=json.dumps(config, indent=1),
    figures={name: _inline(name, svg) for name, svg in figures.items()},
    tables=facts.tables(content),
    claims=facts.claims(content),
    effects=[e for name, e in style.EFFECTS.items() if name in effects],
    bits={net["weight_bits"] for net in content["nets"].values()},
    facts=facts,
    style=style,
  )


def _inline(name, svg):
  """A figure within the page: its own ids, and colours that CSS can change."""
  svg = svg[svg.index("<svg") :]
  svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
  colors = "|".join(style.DARK)
  return re.sub(colors, lambda m: f"var(--c{m[0][1:]}, {m[0]})", svg)
