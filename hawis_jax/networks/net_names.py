"""Names of the nets that are trained: a width vector, and what is made of it.

"<widths>" is binary, "<widths>_int8" its 8-bit and "<widths>_float" its float
reference net; "..._chips" is such a net that is trained on chips. <widths> is
"found" (by the search), "uniform" (scaled to the same budget), "baseline_1x" or
a published width vector of `width_vectors.PRESETS`.
"""

from typing import NamedTuple

from hawis_jax.networks import width_vectors

SEARCHED = ("found", "uniform")  # both need a budget and choices
BASELINE = "baseline_1x"

BINARY, INT8, FLOAT = "binary", "int8", "float"
_SUFFIXES = {"_int8": INT8, "_float": FLOAT}
_CHIPS = "_chips"


class Net(NamedTuple):
  """A name, taken apart."""

  widths: str  # name of the width vector
  kind: str  # BINARY, INT8 or FLOAT
  on_chips: bool = False  # trained there


def parse(name: str) -> Net:
  """Splits a name; any text before suffixes is taken for a width vector."""
  on_chips, name = name.endswith(_CHIPS), name.removesuffix(_CHIPS)
  for suffix, kind in _SUFFIXES.items():
    if name.endswith(suffix):
      return Net(name.removesuffix(suffix), kind, on_chips)
  return Net(name, BINARY, on_chips)


def float_of(name: str) -> str:
  """Returns the float net that an 8-bit one may be made of."""
  net = parse(name)
  return f"{net.widths}_float{_CHIPS if net.on_chips else ''}"


def vector_names(depth: int) -> list[str]:
  """Names the width vectors that a network of `depth` can be trained with."""
  of_depth = f"resnet{depth}_"
  presets = (p for p in width_vectors.PRESETS if p.startswith(of_depth))
  return [*SEARCHED, BASELINE, *presets]
