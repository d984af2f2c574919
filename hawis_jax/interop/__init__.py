"""Other programs' formats, in and out."""

from hawis_jax.interop.cell_readings import fit_device
from hawis_jax.interop.chips import export_chip
from hawis_jax.interop.fault_maps import load_faults
from hawis_jax.interop.fault_maps import save_faults
from hawis_jax.interop.netlist import spice_netlist
from hawis_jax.interop.packed_weights import export_packed
from hawis_jax.interop.packed_weights import load_packed
from hawis_jax.interop.state_dicts import export_weights
from hawis_jax.interop.state_dicts import from_torch_state_dict
from hawis_jax.interop.state_dicts import load_state_dict
from hawis_jax.interop.state_dicts import to_torch_state_dict

__all__ = (
  "export_chip",
  "export_packed",
  "export_weights",
  "fit_device",
  "from_torch_state_dict",
  "load_faults",
  "load_packed",
  "load_state_dict",
  "save_faults",
  "spice_netlist",
  "to_torch_state_dict",
)
