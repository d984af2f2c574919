"""Names of the nets that are trained: a width vector, and what is made of it.

"<widths>" is binary, "<widths>_int8" its 8-bit and "<widths>_float" its float
reference net; "..._chips" is such a net that is trained on chips. <widths> is
"found" (by the search), "uniform" (scaled to the same budget), both also of a
share of the budget, e.g. "found_0.7"; "baseline_1x" or a published width vector
of `width_vectors.PRESETS`. In a configuration "front" stands for the found net
of every budget.
"""

from collections.abc import Sequence
from typing import NamedTuple

from hawis_jax.networks import width_vectors

SEARCHED = ("found", "uniform")  # both need a budget and choices
FRONT = "front"
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


def at_share(widths: str, share: float) -> str:
  """Names a searched vector of a share of the budget: "found_0.7"."""
  return widths if share == 1 else f"{widths}_{share!r}"


def share_of(widths: str) -> float:
  """Returns the share of the main budget of a searched vector."""
  return float(widths.partition("_")[2] or 1)


def is_searched(widths: str) -> bool:
  """Returns whether a width vector needs a search or its budget."""
  return widths.startswith((*SEARCHED, FRONT))


def with_front(
  names: Sequence[str], shares: Sequence[float]
) -> tuple[str, ...]:
  """Returns names, with the found net of each share in place of "front".

  >>> with_front(["front_chips"], [0.7, 1.0])
  ('found_0.7_chips', 'found_chips')
  """
  spelled = []
  for name in names:
    suffixes = name.removeprefix(FRONT)
    if parse(name).widths == FRONT:
      spelled += [at_share("found", share) + suffixes for share in shares]
    else:
      spelled.append(name)
  return tuple(dict.fromkeys(spelled))


def float_of(name: str) -> str:
  """Returns the float net that an 8-bit one may be made of."""
  net = parse(name)
  return f"{net.widths}_float{_CHIPS if net.on_chips else ''}"


def vector_names(depth: int, shares: Sequence[float] = (1,)) -> list[str]:
  """Names the width vectors that a network of `depth` can be trained with.

  Searched ones are of the shares of the main budget.
  """
  searched = [at_share(n, share) for share in shares for n in SEARCHED]
  of_depth = f"resnet{depth}_"
  presets = (p for p in width_vectors.PRESETS if p.startswith(of_depth))
  return [*searched, BASELINE, *presets]
