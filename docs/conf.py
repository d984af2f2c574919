"""The site, with the extra `docs`: python -m sphinx -W docs build/docs."""

import re

import hawis_jax

project = "hawis_jax"
author = copyright = "the hawis_jax authors"
release = version = hawis_jax.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "hawis_jax"
autodoc_typehints = "none"  # the signature has them
myst_heading_anchors = 4
# Two pages are notebooks, run anew at every build (about a minute of CPU time).
nb_execution_mode = "force"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True


def _redirect(app, name, source):
  """Two pages outside of this folder have others in their place."""
  text = source[0].replace("](../launch/README.md", "](clusters.md")
  source[0] = text.replace("](../README.md", "](quick_start.md")


def _as_restructured(app, what, name, obj, options, lines):
  """Docstrings are plain text, with code in single backticks and examples."""

  def convert(match):
    code, plain = match.groups()
    return f"``{code}``\\ " if code else re.sub(r"([*_])", r"\\\1", plain)

  parts = "\n".join(lines).split("\n\n")
  for i, part in enumerate(parts):
    if not part.lstrip().startswith(">>>"):
      parts[i] = re.sub(r"`([^`]+)`|([^`]+|`)", convert, part)
  lines[:] = "\n\n".join(parts).split("\n")


def setup(app):
  """Connects what changes pages as they are read."""
  app.connect("source-read", _redirect)
  # Before napoleon, which writes markup of its own.
  app.connect("autodoc-process-docstring", _as_restructured, priority=400)
