"""Other programs' formats, in and out."""

from hawis_jax.interop.state_dicts import from_torch_state_dict
from hawis_jax.interop.state_dicts import load_state_dict
from hawis_jax.interop.state_dicts import rename
from hawis_jax.interop.state_dicts import to_torch_state_dict

__all__ = (
  "from_torch_state_dict",
  "load_state_dict",
  "rename",
  "to_torch_state_dict",
)
