"""What a search method is.

Axes: K budgets, P proposals for each, L layers.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import chex


@dataclasses.dataclass(frozen=True)
class Method:
  """A search method: pure functions, to be traced.

  Attributes:
    init: (key, context) -> state.
    propose: (key, state, context, step) -> (choices int32 `[K, P, L]`, notes
      for `learn`).
    learn: (key, state, context, step, notes, choices, signals, gains) ->
      (state, scalar metrics). Signals `[K, P]` are what to learn from, gains
      what is to be great: robust scores. Both are less those of the update's
      references, which met the same chips.
    estimate: (state, context, budget's index, choices `[N, L]`) -> `[N]`, gains
      it predicts, up to a constant, for `finalists.best_vectors`; or None.
    limits: {metric: value}: above it the method has gone astray.
  """

  init: Callable[..., Any]
  propose: Callable[..., tuple[chex.Array, Any]]
  learn: Callable[..., tuple[Any, dict[str, chex.Array]]]
  estimate: Callable[..., chex.Array] | None = None
  limits: Mapping[str, float] = dataclasses.field(default_factory=dict)
