"""Crossbar physics: devices, tiles, effects, wires, and the chips of them."""
# ruff: noqa: F401  These names are gathered for those outside of this folder.

from hawis_jax.crossbar.cells import cell_slices
from hawis_jax.crossbar.cells import check_faults
from hawis_jax.crossbar.cells import conductances
from hawis_jax.crossbar.chip import check_readout
from hawis_jax.crossbar.chip import effective_weights
from hawis_jax.crossbar.chip import for_images
from hawis_jax.crossbar.chip import is_ternary
from hawis_jax.crossbar.chip import program
from hawis_jax.crossbar.devices import DEFECTS
from hawis_jax.crossbar.devices import Device
from hawis_jax.crossbar.devices import EFFECTS
from hawis_jax.crossbar.devices import in_circuit
from hawis_jax.crossbar.devices import is_present
from hawis_jax.crossbar.devices import MAPPINGS
from hawis_jax.crossbar.devices import needs_tiles
from hawis_jax.crossbar.devices import scaled
from hawis_jax.crossbar.devices import SCENARIO_FIELDS
from hawis_jax.crossbar.devices import stack
from hawis_jax.crossbar.devices import validate
from hawis_jax.crossbar.devices import with_fields
from hawis_jax.crossbar.devices import without_defects
from hawis_jax.crossbar.devices import without_effects
from hawis_jax.crossbar.mapping import check_placing
from hawis_jax.crossbar.mapping import known_faults
from hawis_jax.crossbar.mapping import match
from hawis_jax.crossbar.mapping import overhead
from hawis_jax.crossbar.mapping import place
from hawis_jax.crossbar.mapping import Placement
from hawis_jax.crossbar.mapping import Placing
from hawis_jax.crossbar.mapping import tiles_of
from hawis_jax.crossbar.presets import from_json
from hawis_jax.crossbar.presets import preset
from hawis_jax.crossbar.presets import PRESETS
from hawis_jax.crossbar.presets import WIRE_RESISTANCES
from hawis_jax.crossbar.wires import wire_transfer
