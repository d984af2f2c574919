"""The configuration: its fields, their checks, and what follows from them."""

from hawis_jax.config.config import default
from hawis_jax.config.config import device
from hawis_jax.config.config import flatten
from hawis_jax.config.config import hardware
from hawis_jax.config.config import num_stages
from hawis_jax.config.config import pretrain_devices
from hawis_jax.config.config import search_devices
from hawis_jax.config.config import searches
from hawis_jax.config.config import sweeps
from hawis_jax.config.config import validate
from hawis_jax.config.config import width_space
from hawis_jax.config.fields import FIELDS
from hawis_jax.config.load import load
from hawis_jax.config.load import reason
from hawis_jax.config.settle import settle

__all__ = (
  "FIELDS",
  "default",
  "device",
  "flatten",
  "hardware",
  "load",
  "num_stages",
  "pretrain_devices",
  "reason",
  "search_devices",
  "searches",
  "settle",
  "sweeps",
  "validate",
  "width_space",
)
