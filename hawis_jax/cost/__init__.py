"""Hardware cost of a width vector: arrays, MACs, energy, time, area.

A network is a list of matrix products, and each costs what its own and its
input's width say: `tables` tabulates that completely, for budgets.

Dynamic programming over the layers counts the ways to finish every beginning of
a vector within a range of cost. Whoever chooses layer after layer among the
choices with such a way never leaves the range. Further limits on other costs
hold by a witness: each beginning keeps one way to finish and what it costs, and
is given up when even that one costs too much. The witness's own next choice
keeps it as witness, so nobody gets stuck; and since it is the way of least
cost, a single limit excludes no vector that meets it.
"""

# ruff: noqa: F401  These names are gathered for those outside of this folder.

from hawis_jax.cost.arrays import stored_weights
from hawis_jax.cost.arrays import utilisation
from hawis_jax.cost.budgets import cost_bands
from hawis_jax.cost.budgets import cost_unit
from hawis_jax.cost.budgets import feasible_set
from hawis_jax.cost.budgets import Limit
from hawis_jax.cost.feasible import cost_range
from hawis_jax.cost.feasible import FeasibleSet
from hawis_jax.cost.feasible import slowest_entry
from hawis_jax.cost.feasible import vector_cost
from hawis_jax.cost.geometry import cifar_geometry
from hawis_jax.cost.geometry import Geometry
from hawis_jax.cost.geometry import imagenet_geometry
from hawis_jax.cost.geometry import Layer
from hawis_jax.cost.geometry import Product
from hawis_jax.cost.hardware import Hardware
from hawis_jax.cost.hardware import hardware
from hawis_jax.cost.model import Amount
from hawis_jax.cost.model import COMPONENTS
from hawis_jax.cost.model import components
from hawis_jax.cost.model import Cost
from hawis_jax.cost.model import COUNTS
from hawis_jax.cost.model import field
from hawis_jax.cost.model import KINDS
from hawis_jax.cost.model import layer_costs
from hawis_jax.cost.model import network_cost
from hawis_jax.cost.model import OWN
from hawis_jax.cost.model import unit
from hawis_jax.cost.tables import own_tables
from hawis_jax.cost.tables import own_tables_from_csv
from hawis_jax.cost.tables import tables
from hawis_jax.cost.technology import TECHNOLOGIES
from hawis_jax.cost.technology import Technology
from hawis_jax.cost.technology import technology
from hawis_jax.cost.technology import technology_from_json
from hawis_jax.cost.technology import validate_technology
