"""Programmed chips in files.

A chip's file, .npz or HDF5 (.hdf5, .h5), holds of every layer

    <scope/layer>/target  float32 [S], what every cell is programmed to
    <scope/layer>/actual  float32 [S], what it has: with all effects on cells
    <scope/layer>/faults  int8, 1 stuck on, -1 stuck off, 0 healthy

all `[slices, row_tiles, col_tiles, 2, R, C]`, where 2 is (positive, negative)
array of the differential pair. The layer's matrix has a row per input of a
column, ordered (c_in, kh, kw), and a column per output; tiles cut it from its
first row and column on, and cells beyond it are targeted at g_off. An effective
weight, in steps of the net's weights, is

    sum_s (steps + 1)^s steps (G+_s - G-_s) / (g_on - g_off),

with the least significant slice s = 0. Wires, converters and noise a read are
of the read-out, not in the file. `metadata`, JSON text in a scalar, has

    format, version  "hawis_jax chip", 1
    hawis_jax        version of the package
    bits, steps      of a weight; of a cell from g_off to g_on
    scales           of weights of several bits, see `crossbar.conductances`
    write            number of the programming
    key              {"impl", "data"}, of `jax.random.wrap_key_data`
    device           {field: value} of `crossbar.Device`, SI units
    row_order        ["c_in", "kh", "kw"]
    layers           {scope/layer: {"kernel" (shape), "rows", "columns"}}
"""

from collections.abc import Mapping
import dataclasses
import json
import math
import os
from typing import Any

import chex
from flax import traverse_util
import jax
import numpy as np

import hawis_jax
from hawis_jax import errors
from hawis_jax.crossbar import cells
from hawis_jax.crossbar import devices
from hawis_jax.interop import array_files
from hawis_jax.interop import fault_maps

_cells = jax.jit(cells.chip_cells, static_argnames=("bits", "scales"))


def export_chip(
  path: str | os.PathLike,
  key: chex.PRNGKey,
  variables: Mapping,
  device: devices.Device,
  bits: int = 1,
  write: int = 0,
  faults: Mapping[str, Any] | None = None,
  scales: str | None = None,
) -> None:
  """Programs a net into one chip, as `crossbar.program`, and writes its cells.

  Args:
    path: .npz, .hdf5 or .h5; replaced if it is there. See the module's
      documentation for what it holds.
    key: of one chip; consumed.
    variables: of a network: its `params`, and `batch_stats` if it has any.
    device: see `crossbar.Device`; its parameters are concrete.
    bits: of the network's weights, see `crossbar.conductances`.
    write: number of the programming.
    faults: of a measured chip, beside those drawn, as of `load_faults`.
    scales: of the network's weights of several bits, see `crossbar.program`.

  Raises:
    InputError: another suffix; a bad device, bits, scales or faults; no h5py;
      the file can't be written.
  """
  path = array_files.checked_path(path, array_files.SUFFIXES)
  device = devices.plain(devices.validate(device))
  if device.mapping != "differential":
    raise errors.InputError(
      f"mapping: got {device.mapping!r}, allowed is 'differential': the file "
      "is of pairs of arrays"
    )
  cells.check_integers(variables, bits, scales)
  params = {"params": variables["params"]}
  if faults is not None:
    faults = fault_maps.as_faults("faults", faults)
  layers = _cells(
    key, params, device, bits=bits, write=write, faults=faults, scales=scales
  )
  kernels = traverse_util.flatten_dict(params["params"], sep="/")
  shapes = {name: kernels[f"{name}/kernel"].shape for name in layers}
  metadata = {
    "format": fault_maps.FORMAT,
    "version": fault_maps.VERSION,
    "hawis_jax": hawis_jax.__version__,
    "bits": bits,
    "scales": scales,
    "steps": int(next(iter(layers.values())).steps),
    "write": int(write),
    "key": {
      "impl": str(jax.random.key_impl(key)),
      "data": np.asarray(jax.random.key_data(key)).tolist(),
    },
    "device": dataclasses.asdict(device),
    "row_order": ["c_in", "kh", "kw"],
    "layers": {
      name: {
        "kernel": list(shape),
        "rows": math.prod(shape[:-1]),
        "columns": shape[-1],
      }
      for name, shape in shapes.items()
    },
  }
  arrays = {
    fault_maps.METADATA: np.array(json.dumps(metadata, allow_nan=False))
  }
  for name, layer in layers.items():
    arrays[f"{name}/target"] = np.asarray(layer.targets, np.float32)
    arrays[f"{name}/actual"] = np.asarray(layer.conductances, np.float32)
    arrays[f"{name}{fault_maps.FAULTS}"] = np.asarray(layer.faults, np.int8)
  array_files.write(path, arrays)
