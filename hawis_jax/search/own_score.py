"""A search with a score function, and a cost table, of one's own.

Axes: P proposals, N scored vectors, L layers.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import cost
from hawis_jax import errors
from hawis_jax.networks import width_vectors
from hawis_jax.search import methods
from hawis_jax.search import registry
from hawis_jax.search import selection
from hawis_jax.search.method import Context
from hawis_jax.search.method import make_context


class SearchResult(NamedTuple):
  """What a search has found."""

  widths: tuple[int, ...]  # of the best vector [channels], `[L]`
  score: float  # the mean of its scores
  vectors: np.ndarray  # int64 `[N, L]`, all that were scored, in order
  scores: np.ndarray  # float64 `[N]`


def feasible_set(
  space: width_vectors.WidthSpace,
  costs: np.ndarray | Callable[[int, int, int], float],
  budget_range: tuple[float, float],
) -> Context:
  """Returns the width vectors whose cost lies in a budget range.

  Methods start with uniform draws from them, and no other has any probability:
  dynamic programming over the layers counts the ways to complete a vector, as
  in sampling solutions of a knapsack (Dyer, STOC 2003).

  >>> import hawis_jax as hx
  >>> space = hx.width_space(((4, 8), (8, 16), (16, 32)), num_layers=7)
  >>> geometry = hx.cifar_geometry(8, (8, 8, 1), 16, 10)
  >>> costs = hx.cost_tables(space.table, geometry, "macs")
  >>> ok = hx.feasible_set(space, costs, (0.0, 4e5))
  >>> ok.widths.shape
  (7, 2)
  >>> weights = lambda layer, inputs, outputs: 9 * (inputs or 16) * outputs
  >>> ok = hx.feasible_set(space, weights, (0.0, 2e4))

  Args:
    space: of the vectors, see `width_space`.
    costs: `[L, A, C, C]` by adjacent layers' choices, from `cost_tables`; or
      one's own: a table or a function (layer, inputs, outputs) -> cost, see
      `own_costs`. A vector costs the sum over its layers.
    budget_range: (least, most), in the unit of `costs`.

  Raises:
    InputError: no vector lies in the range; or costs that are none.
  """
  costs = cost.own_tables(space, costs)
  feasible = cost.feasible_set(
    space, costs, [budget_range], name="budget_range"
  )
  # A cost of one's own says nothing of sizes: layers are told apart by place.
  positions = (1,) * len(space.choices)
  return make_context(space, feasible, costs, positions, budget_range[1:])


def search_widths(
  key: chex.PRNGKey,
  score_fn: Callable[[np.ndarray], chex.Array],
  feasible: Context,
  method: methods.Choice = methods.policy(),  # noqa: B008
  num_updates: int = 100,
) -> SearchResult:
  """Returns the width vector of the highest score, and all that were scored.

  It is the loop of HAWIS (ASP-DAC 2022), with a score of one's own: propose,
  score, learn.

  >>> import jax
  >>> import hawis_jax as hx
  >>> space = hx.width_space(((4, 8), (8, 16), (16, 32)), num_layers=7)
  >>> geometry = hx.cifar_geometry(8, (8, 8, 1), 16, 10)
  >>> costs = hx.cost_tables(space.table, geometry, "macs")
  >>> ok = hx.feasible_set(space, costs, (0.0, 1e9))
  >>> best = hx.search_widths(
  ...   jax.random.key(0), lambda widths: widths.sum(-1), ok,
  ...   method=hx.random_search(proposals=64), num_updates=4,
  ... )
  >>> best.widths
  (8, 8, 8, 16, 16, 32, 32)

  Args:
    key: of all that is random; the same key proposes the same.
    score_fn: widths int64 `[P, L]` -> scores `[P]`, the higher the better; it
      may be noisy, and need not be traceable.
    feasible: from `feasible_set`.
    method: `policy()`, `predictor()`, `evolution()` or another.
    num_updates: calls of `score_fn`.

  Returns:
    `widths` `[L]`: the vector of the highest score; where scores are noisy, of
    the highest mean, shrunk by the number of scores: one lucky score counts
    half. `score`: the mean of its scores. `vectors` int `[N, L]` and `scores`
    float `[N]`: all that were scored, in order.

  Raises:
    InputError: scores of another shape, or that are not finite; no updates.
  """
  errors.check_key(key)
  errors.check_count(num_updates, "num_updates")
  settings = dataclasses.replace(method.settings, updates=num_updates)
  built = registry.build(method.name, settings)
  init_key, key = jax.random.split(key)
  state = jax.jit(built.init)(init_key, feasible)
  propose, learn = jax.jit(built.propose), jax.jit(built.learn)
  table = np.asarray(feasible.widths, np.int64)
  layers = np.arange(len(table))
  choices, scores = [], []
  for step in range(num_updates):
    keys = jax.random.split(jax.random.fold_in(key, step))
    proposed, notes = propose(keys[0], state, feasible, step)
    chosen = np.asarray(proposed)[0]
    got = np.asarray(score_fn(table[layers, chosen]), np.float64)
    if got.shape != (settings.proposals,) or not np.isfinite(got).all():
      raise errors.InputError(
        f"score_fn: got {got!r}, needed are {settings.proposals} finite scores"
      )
    # What all scores of an update have in common tells no vector from another.
    reward = jnp.asarray(got - got.mean(), jnp.float32)[None]
    state, _ = learn(
      keys[1], state, feasible, step, notes, proposed, reward, reward
    )
    choices.append(chosen)
    scores.append(got)
  choices, scores = np.concatenate(choices), np.concatenate(scores)
  estimate = built.estimate and functools.partial(
    built.estimate, state, feasible, 0
  )
  best = _best(choices, scores, estimate)
  same = (choices == best).all(1)
  widths = tuple(int(width) for width in table[layers, best])
  return SearchResult(
    widths, float(scores[same].mean()), table[layers, choices], scores
  )


def _best(choices, scores, estimate):
  """The best vector of choices `[L]`; see `search_widths`."""
  _, first, inverse = np.unique(
    choices, axis=0, return_index=True, return_inverse=True
  )
  if (scores == scores[first][inverse.reshape(-1)]).all():  # no noise
    return choices[scores.argmax()]
  centred = scores - scores.mean()
  ((best, _),) = selection.best_vectors(choices, centred, 1, estimate)
  return best
