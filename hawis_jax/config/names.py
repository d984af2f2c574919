"""Names that fields of the configuration and the library take.

hawis-jax list            all of them
hawis-jax list presets    one kind, as JSON with --json
"""

import argparse
import ast
from collections.abc import Sequence
import json
import pathlib

from hawis_jax import cost
from hawis_jax import crossbar
from hawis_jax.config import fields
from hawis_jax.networks import width_vectors
from hawis_jax.search import registry

KINDS = (
  "presets",
  "technologies",
  "configs",
  "methods",
  "vectors",
  "scenarios",
)
_TAKES = {
  "presets": "config.device.preset and hx.PRESETS",
  "technologies": "config.space.technology",
  "configs": "--config, of this folder's configs/",
  "methods": "config.search.methods",
  "vectors": "config.train.nets, search.budget_of and hx.WIDTHS",
  "scenarios": "config.robustness.scenarios: fields of a device",
}


def names(kind: str) -> dict[str, str]:
  """Returns {name: what it is, in a line} of one of `KINDS`."""
  if kind == "presets":
    return {name: _device(device) for name, device in crossbar.PRESETS.items()}
  if kind == "technologies":
    return {
      name: f"converter of 8 bits {1e12 * found.convert_energy(8):.3g} pJ"
      for name, found in cost.TECHNOLOGIES.items()
    }
  if kind == "configs":
    paths = sorted(pathlib.Path("configs").glob("*.py"))
    return {str(path): _first_line(path) for path in paths}
  if kind == "methods":
    default = fields.FIELDS["search.methods"].default
    return {
      name: meaning + ("; by default" if name in default else "")
      for name, meaning in registry.MEANINGS.items()
    }
  if kind == "vectors":
    return {
      name: f"{len(widths)} layers of {min(widths)} to {max(widths)} channels"
      for name, widths in width_vectors.PRESETS.items()
    }
  defaults = crossbar.Device()
  return {"device": "a share of the effects that the device has itself"} | {
    name: f"by default {getattr(defaults, name)!r}"
    for name in crossbar.SCENARIO_FIELDS
  }


def _device(device):
  effects = [
    f"{name} {getattr(device, name):g}"
    for name in crossbar.EFFECTS
    if crossbar.is_present(getattr(device, name))
  ]
  rows, columns = device.tile_shape
  return (
    f"{1e6 * device.g_off:.3g} to {1e6 * device.g_on:.3g} uS, tiles of {rows} "
    f"x {columns}; {', '.join(effects) or 'no effects'}"
  )


def _first_line(path):
  try:
    documentation = ast.get_docstring(ast.parse(path.read_bytes())) or ""
  except (OSError, SyntaxError, ValueError) as error:
    return f"can't be read: {type(error).__name__}"
  return documentation.partition("\n")[0]


def main(arguments: Sequence[str] | None = None) -> int:
  """Prints names; returns the exit status."""
  parser = argparse.ArgumentParser(
    "hawis-jax list",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("kind", nargs="?", choices=KINDS, help="default: all")
  parser.add_argument("--json", action="store_true", help="for programs")
  given = parser.parse_args(arguments)
  found = {
    kind: names(kind) for kind in ([given.kind] if given.kind else KINDS)
  }
  if given.json:
    print(json.dumps(found, indent=1))
    return 0
  for kind, entries in found.items():
    print(f"{kind}, for {_TAKES[kind]}{'' if entries else ': none'}")
    width = max(map(len, entries), default=0)
    for name, meaning in entries.items():
      print(f"  {name:{width}}  {meaning}".rstrip())
  return 0
