"""Fault maps of measured chips in files, .npz or HDF5 (.hdf5, .h5).

A file has an array <scope/layer> of faults a layer, int8 `[slices, row_tiles,
col_tiles, 2, R, C]`, 2 being (positive, negative) array of the differential
pair: 1 stuck on, -1 stuck off, 0 healthy. A file of `export_chip` serves too.
"""

from collections.abc import Mapping
import os

import numpy as np

from hawis_jax import errors
from hawis_jax.interop import array_files

FORMAT, VERSION = "hawis_jax chip", 1
METADATA = "metadata"  # array that marks an exported chip
FAULTS = "/faults"


def load_faults(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Reads the faults of an exported chip, or a measured chip's fault map.

  Args:
    path: .npz, .hdf5 or .h5, from `export_chip`, `save_faults` or elsewhere.

  Returns:
    {"scope/layer": int8 `[slices, row_tiles, col_tiles, 2, R, C]`}: 1 where a
    cell is stuck on, -1 where it is stuck off, else 0; of `crossbar.program`.

  Raises:
    InputError: the file is missing, damaged, of another kind or version, or
      holds what is no fault map; no h5py.
  """
  path = array_files.checked_path(path, array_files.SUFFIXES)
  with array_files.read_errors(path), array_files.opened(path) as arrays:
    metadata = arrays[METADATA][()] if METADATA in arrays else None
    end = "" if metadata is None else FAULTS
    faults = {
      name.removesuffix(end): np.asarray(arrays[name][()])
      for name in arrays
      if name.endswith(end)
    }
  if metadata is not None:
    for name in _layers_of(metadata, path):
      if name not in faults:
        raise errors.InputError(
          f"{path}: layer {name}: got no array {name}{FAULTS}, needed is one "
          "a layer"
        )
  return as_faults(str(path), faults)


def save_faults(
  path: str | os.PathLike, faults: Mapping[str, np.ndarray]
) -> None:
  """Writes a fault map, for `load_faults`: .npz, .hdf5 or .h5.

  Raises:
    InputError: another suffix; no fault map; no h5py; the file can't be
      written.
  """
  path = array_files.checked_path(path, array_files.SUFFIXES)
  if METADATA in faults:
    raise errors.InputError(
      f"faults: got a layer {METADATA!r}, allowed is any other name: it marks "
      "an exported chip"
    )
  array_files.write(path, as_faults("faults", faults))


def as_faults(
  source: str, faults: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Returns {layer: int8}, checked; `source` is for errors."""
  if not faults:
    raise errors.InputError(f"{source}: got no layer, needed is one or more")
  return {
    name: _layer_faults(f"{source}: layer {name}", np.asarray(array))
    for name, array in faults.items()
  }


def _layer_faults(source, array):
  if not np.issubdtype(array.dtype, np.integer):
    raise errors.InputError(
      f"{source}: got type {array.dtype}, allowed are integers: 1 stuck on, -1 "
      "stuck off, 0 healthy"
    )
  if array.ndim != 6 or array.shape[3] != 2 or not array.size:
    raise errors.InputError(
      f"{source}: got an array of shape {array.shape}, needed is (slices, row "
      "tiles, column tiles, 2, rows, columns)"
    )
  wrong = array[~np.isin(array, (-1, 0, 1))]
  if wrong.size:
    raise errors.InputError(
      f"{source}: got {wrong[0]} in {wrong.size} of {array.size} cells, "
      "allowed are 1 (stuck on), -1 (stuck off) and 0 (healthy)"
    )
  return array.astype(np.int8)


def _layers_of(metadata, path):
  """Reads the names of an exported chip's layers; HDF5's text is bytes."""
  try:
    metadata = errors.parse_json(metadata, path)
    got = (metadata.get("format"), metadata.get("version"))
    layers = list(metadata.get("layers", ()))
  except (ValueError, AttributeError, TypeError) as error:
    raise errors.InputError(
      f"{path}: {METADATA}: got no JSON object, needed is that of "
      "export_chip; a fault map has no array of this name"
    ) from error
  if got != (FORMAT, VERSION):
    raise errors.InputError(
      f"{path}: {METADATA}: got format {got[0]!r}, version {got[1]!r}, "
      f"allowed is {FORMAT!r}, version {VERSION}"
    )
  return layers
