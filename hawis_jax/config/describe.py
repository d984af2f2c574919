"""The table of fields in words: for `--help`, and docs/configuration.md.

python -m hawis_jax.config.describe > docs/configuration.md
"""

import textwrap

from hawis_jax.config import fields

_HEAD = """# Configuration

Every field of a configuration file, and of the command line:
`--config.search.updates=30`, `--config.train.nets="('found',)"`. A run may be
resumed with other values of fields marked *: they change how a result is
computed, saved or shown, never the result. This page is made by
`python -m hawis_jax.config.describe`.
"""


def help_text() -> str:
  """Returns every field with its default, its meaning and what is allowed."""
  return "\n".join(
    textwrap.fill(
      f"--config.{name}={field.default!r}: {field.meaning} ({field.allowed})",
      width=80,
      initial_indent="  ",
      subsequent_indent="      ",
      break_on_hyphens=False,
    )
    for name, field in fields.FIELDS.items()
  )


def markdown() -> str:
  """Returns the text of docs/configuration.md."""
  lines = [_HEAD]
  for section, (title, _) in fields.SECTIONS.items():
    lines.append(f"## {title}\n")
    lines.append("| field | default | meaning | allowed |\n|---|---|---|---|")
    for name, field in fields.FIELDS.items():
      if name.partition(".")[0] == section or not (section or "." in name):
        star = " *" if field.is_free else ""
        cells = (f"`{field.default!r}`", field.meaning, field.allowed)
        cells = (
          cell.replace("|", r"\|").replace("<", "&lt;") for cell in cells
        )
        lines.append(f"| `{name}`{star} | {' | '.join(cells)} |")
    lines.append("")
  return "\n".join(lines)


if __name__ == "__main__":
  print(markdown(), end="")
