"""Hardware cost of a width vector: arrays, MACs, energy, time, area.

A network is a list of matrix products, and each costs what its own and its
input's width say: `tables` tabulates that completely, for budgets.
"""

from hawis_jax.cost.arrays import stored_weights
from hawis_jax.cost.arrays import Utilisation
from hawis_jax.cost.arrays import utilisation
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
from hawis_jax.cost.model import Kind
from hawis_jax.cost.model import KINDS
from hawis_jax.cost.model import layer_costs
from hawis_jax.cost.model import network_cost
from hawis_jax.cost.tables import tables
from hawis_jax.cost.technology import TECHNOLOGIES
from hawis_jax.cost.technology import Technology
from hawis_jax.cost.technology import technology
from hawis_jax.cost.technology import technology_from_json
from hawis_jax.cost.technology import validate as validate_technology

__all__ = (
  "COMPONENTS",
  "COUNTS",
  "KINDS",
  "TECHNOLOGIES",
  "Amount",
  "Cost",
  "Geometry",
  "Hardware",
  "Kind",
  "Layer",
  "Product",
  "Technology",
  "Utilisation",
  "cifar_geometry",
  "components",
  "hardware",
  "imagenet_geometry",
  "layer_costs",
  "network_cost",
  "stored_weights",
  "tables",
  "technology",
  "technology_from_json",
  "utilisation",
  "validate_technology",
)
