"""1-bit weights in files, eight to a byte, with all else that a net needs.

A file, .safetensors or .npz, holds of every 1-bit product

    <scope/layer>/signs  uint8 [rows, ceil(C_out / 8)], 1: +1, 0: -1
    <scope/layer>/zeros  the same of weights that are exactly 0, which count as
                         0; only where there are any
    <scope/layer>/shape  int32, of the kernel: [k, k, C_in, C_out], or linear
                         [C_in, C_out]; rows are all axes but the last
    <scope/layer>/scale  float32, alpha, one number or [C_out]: a sum of +-1
                         times it is the product

where the first column is the highest bit (`numpy.unpackbits` undoes it), and
under `params/` and `batch_stats/` every other variable as it is: normalisation,
thresholds, PReLU.
"""

from collections.abc import Mapping
import os

from flax import linen as nn
from flax import traverse_util
import numpy as np
from safetensors import numpy as safetensors

from hawis_jax import errors
from hawis_jax.arithmetic import binary
from hawis_jax.interop import array_files


def packed(module: nn.Module, variables: Mapping) -> dict[str, np.ndarray]:
  """Returns the arrays of the file, see the module's documentation.

  Args:
    module: a binary net.
    variables: its `params` and `batch_stats`.

  Raises:
    InputError: it is another net; a weight is not finite.
  """
  if module.weight_bits != 1:
    kind = f"{module.weight_bits}-bit" if module.weight_bits else "float"
    raise errors.InputError(
      f"net: got one of {kind} weights, allowed are 1-bit nets"
    )
  kept = {k: v for k, v in variables.items() if k in ("params", "batch_stats")}
  arrays = {}
  for name, leaf in traverse_util.flatten_dict(kept, sep="/").items():
    leaf = np.asarray(leaf)
    layer = name.removeprefix("params/").removesuffix("/kernel")
    if not name.endswith("/kernel"):
      arrays[name] = leaf
      continue
    if not np.isfinite(leaf).all():
      raise errors.InputError(f"{name}: got weights that are not finite")
    rows = leaf.reshape(-1, leaf.shape[-1])
    arrays[f"{layer}/signs"] = np.packbits(rows > 0, axis=1)
    if (rows == 0).any():
      arrays[f"{layer}/zeros"] = np.packbits(rows == 0, axis=1)
    arrays[f"{layer}/shape"] = np.array(leaf.shape, np.int32)
    arrays[f"{layer}/scale"] = np.asarray(
      binary.weight_scale(leaf, per_channel=module.options.channel_scale)
    )
  return arrays


def export_packed(
  path: str | os.PathLike, module: nn.Module, variables: Mapping
) -> None:
  """Writes a binary net with eight weights to a byte.

  Args:
    path: .safetensors or .npz; replaced if it is there.
    module: as of `packed`.
    variables: as of `packed`.

  Raises:
    InputError: another suffix or net; the file can't be written.
  """
  path = array_files.checked_path(path, (".safetensors", ".npz"))
  arrays = packed(module, variables)
  if path.suffix == ".npz":
    array_files.write(path, arrays)
    return
  # Not ascontiguousarray, which makes a vector of a scalar.
  data = safetensors.save(
    {k: np.asarray(x, order="C") for k, x in arrays.items()}
  )
  with array_files.replaced(path) as partial:
    partial.write_bytes(data)


def load_packed(path: str | os.PathLike) -> dict:
  """Reads the variables that `export_packed` has written.

  Latent weights are +-alpha, or 0 where they were: they act as those that were
  written, but for the last bits of a mean that is taken anew.

  Args:
    path: of the file.

  Raises:
    InputError: it is missing or damaged, or holds no packed weights.
  """
  path = array_files.checked_path(path, (".safetensors", ".npz"))
  with array_files.read_errors(path):
    if path.suffix == ".npz":
      with array_files.opened(path) as opened:
        arrays = dict(opened)
    else:
      arrays = safetensors.load_file(path)
    if not any(name.endswith("/signs") for name in arrays):
      raise errors.InputError(
        f"{path}: got no packed weights, needed is <layer>/signs, as "
        "export_packed writes it"
      )
    flat = {}
    for name, leaf in arrays.items():
      layer, _, what = name.rpartition("/")
      if what == "signs":
        flat[f"params/{layer}/kernel"] = _kernel(arrays, layer)
      elif f"{layer}/signs" not in arrays:
        flat[name] = leaf
    return traverse_util.unflatten_dict(flat, sep="/")


def _kernel(arrays, layer):
  """Latent weights whose signs and means are those of a packed layer."""
  shape, scale = arrays[f"{layer}/shape"], arrays[f"{layer}/scale"]

  def bits(what):
    return np.unpackbits(arrays[f"{layer}/{what}"], axis=1, count=shape[-1])

  sign = 2.0 * bits("signs") - 1
  if f"{layer}/zeros" in arrays:
    sign[bits("zeros").astype(bool)] = 0
  # Zeros count in the mean that alpha is.
  used = np.abs(sign).mean(0 if np.ndim(scale) else None)
  kernel = sign * scale / np.where(used, used, 1)
  return kernel.reshape(shape).astype(np.float32)
