"""Budgets: the width vectors whose cost lies in a window, to be drawn from.

Costs are sums of terms of adjacent layers (`cost.tables`), so dynamic
programming over the layers counts the ways to finish every beginning of a
vector. Whoever chooses layer after layer among the choices with such a way
never leaves the window. Further limits on other costs hold by a witness: each
beginning keeps one way to finish and what it costs, and is given up when even
that one costs too much. The witness's own next choice keeps it as witness, so
nobody gets stuck; and since it is the way of least cost, a single limit
excludes no vector that meets it.
"""

from hawis_jax.budgets.costs import cost_range
from hawis_jax.budgets.costs import slowest_entry
from hawis_jax.budgets.costs import vector_cost
from hawis_jax.budgets.counting import cost_bands
from hawis_jax.budgets.counting import cost_unit
from hawis_jax.budgets.counting import feasible_set
from hawis_jax.budgets.counting import Limit
from hawis_jax.budgets.feasible import FeasibleSet
from hawis_jax.budgets.feasible import Prefix

__all__ = (
  "FeasibleSet",
  "Limit",
  "Prefix",
  "cost_bands",
  "cost_range",
  "cost_unit",
  "feasible_set",
  "slowest_entry",
  "vector_cost",
)
