"""Chips and fault maps in files, and nets under published names.

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
    write            number of the programming
    key              {"impl", "data"}, of `jax.random.wrap_key_data`
    device           {field: value} of `crossbar.Device`, SI units
    row_order        ["c_in", "kh", "kw"]
    layers           {scope/layer: {"kernel" (shape), "rows", "columns"}}

A fault map's file, for a measured chip, has just an array <scope/layer> of
faults a layer, and no `metadata`. Whatever is written replaces a file as a
whole, or leaves it as it was.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
from typing import Any
import zipfile

import chex
from flax import traverse_util
import jax
import numpy as np
from safetensors import numpy as safetensors

from hawis_jax import errors
from hawis_jax import files
from hawis_jax.crossbar import chip as chip_lib
from hawis_jax.crossbar import devices
from hawis_jax.interop import state_dicts

_FORMAT, _VERSION = "hawis_jax chip", 1
_METADATA = "metadata"
_FAULTS = "/faults"
_SUFFIXES = (".npz", ".hdf5", ".h5")

_cells = jax.jit(chip_lib.cells, static_argnames="bits")


def export_chip(
  path: str | os.PathLike,
  key: chex.PRNGKey,
  variables: Mapping,
  device: devices.Device,
  bits: int = 1,
  write: int = 0,
  faults: Mapping[str, Any] | None = None,
) -> None:
  """Programs a net into one chip, as `crossbar.program`, and writes its cells.

  Args:
    path: .npz, .hdf5 or .h5; replaced if it is there. See the module's
      documentation for what it holds.
    key: of one chip; consumed.
    variables: of a network: its `params`.
    device: see `crossbar.Device`; its parameters are concrete.
    bits: of the network's weights, see `crossbar.conductances`.
    write: number of the programming.
    faults: of a measured chip, beside those drawn, as of `load_faults`.

  Raises:
    InputError: another suffix; a bad device, bits or faults; no h5py; the file
      can't be written.
  """
  path = _checked(path, _SUFFIXES)
  device = devices.validate(_concrete(device))
  params = {"params": variables["params"]}
  if faults is not None:
    faults = _as_faults("faults", faults)
    shapes = jax.eval_shape(
      lambda key, params: chip_lib.cells(key, params, device, bits), key, params
    )
    _check_fit(faults, {name: x.faults.shape for name, x in shapes.items()})
  layers = _cells(key, params, device, bits=bits, write=write, faults=faults)
  metadata = {
    "format": _FORMAT,
    "version": _VERSION,
    "hawis_jax": _package_version(),
    "bits": bits,
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
        "kernel": shape,
        "rows": int(np.prod(shape[:-1])),
        "columns": shape[-1],
      }
      for name, shape in _kernel_shapes(params, layers).items()
    },
  }
  arrays = {_METADATA: np.array(json.dumps(metadata, allow_nan=False))}
  for name, layer in layers.items():
    arrays[f"{name}/target"] = np.asarray(layer.targets, np.float32)
    arrays[f"{name}/actual"] = np.asarray(layer.conductances, np.float32)
    arrays[f"{name}{_FAULTS}"] = np.asarray(layer.faults, np.int8)
  _write(path, arrays)


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
  path = _checked(path, _SUFFIXES)
  if not path.is_file():
    raise errors.InputError(f"{path}: no such file")
  try:
    with _open(path) as arrays:
      metadata = None
      if _METADATA in arrays:
        metadata = _text(arrays[_METADATA][()])
      end = "" if metadata is None else _FAULTS
      faults = {
        name.removesuffix(end): np.asarray(arrays[name][()])
        for name in arrays
        if name.endswith(end)
      }
  except Exception as error:
    # A damaged file makes its reader raise anything.
    reason = str(error).strip().partition("\n")[0]
    raise errors.InputError(
      f"{path}: can't be read as {path.suffix}: {type(error).__name__}: "
      f"{reason}"
    ) from error
  if metadata is not None:
    for name in _layers_of(metadata, path):
      if name not in faults:
        raise errors.InputError(
          f"{path}: layer {name}: got no array {name}{_FAULTS}, needed is one "
          "a layer"
        )
  return _as_faults(str(path), faults)


def save_faults(
  path: str | os.PathLike, faults: Mapping[str, np.ndarray]
) -> None:
  """Writes a fault map, for `load_faults`.

  Args:
    path: .npz, .hdf5 or .h5; replaced if it is there.
    faults: as `load_faults` returns them.

  Raises:
    InputError: another suffix; no fault map; no h5py; the file can't be
      written.
  """
  path = _checked(path, _SUFFIXES)
  if _METADATA in faults:
    raise errors.InputError(
      f"faults: got a layer {_METADATA!r}, allowed is any other name: it marks "
      "an exported chip"
    )
  _write(path, _as_faults("faults", faults))


def export_weights(path: str | os.PathLike, variables: Mapping) -> None:
  """Writes a net's `params` and `batch_stats` under published PyTorch names.

  Args:
    path: .safetensors, for `from_torch_state_dict`; replaced if it is there.
    variables: of any network.

  Raises:
    InputError: another suffix; no variables; the file can't be written.
  """
  path = _checked(path, (".safetensors",))
  state = state_dicts.to_torch_state_dict(variables)
  if not state:
    raise errors.InputError(
      f"variables: got {', '.join(variables) or 'none'}, needed are params or "
      "batch_stats"
    )
  # Not ascontiguousarray, which makes a vector of a scalar.
  state = {name: np.asarray(x, order="C") for name, x in state.items()}
  # Readers of PyTorch's ask for this mark.
  data = safetensors.save(state, {"format": "pt"})
  with _replaced(path) as partial:
    partial.write_bytes(data)


def _checked(path, suffixes):
  """The path, if its suffix is allowed and can be served."""
  path = pathlib.Path(path)
  if path.suffix not in suffixes:
    raise errors.InputError(
      f"{path}: got suffix {path.suffix!r}, allowed are {', '.join(suffixes)}"
    )
  if path.suffix in (".hdf5", ".h5"):
    try:
      import h5py  # noqa: F401
    except ImportError as error:
      raise errors.InputError(
        f"{path}: needs the package h5py: install hawis_jax[hdf5], or use .npz"
      ) from error
  return path


def _concrete(device):
  """The device with numbers of Python, as of one of several chips' devices."""

  def plain(value):
    if value is None:
      return 0.0
    if isinstance(value, tuple):
      return tuple(map(plain, value))
    return value.item() if getattr(value, "ndim", None) == 0 else value

  return devices.Device(
    **{
      field.name: plain(getattr(device, field.name))
      for field in dataclasses.fields(device)
    }
  )


def _kernel_shapes(variables, layers):
  flat = traverse_util.flatten_dict(variables["params"], sep="/")
  return {name: list(flat[f"{name}/kernel"].shape) for name in layers}


def _package_version():
  try:
    return importlib.metadata.version("hawis_jax")
  except importlib.metadata.PackageNotFoundError:
    return "not installed"


def _as_faults(source, faults):
  """{layer: int8}, checked; `source` is for errors."""
  if not faults:
    raise errors.InputError(f"{source}: got no layer, needed is one or more")
  return {
    name: _layer_faults(f"{source}: layer {name}", array)
    for name, array in faults.items()
  }


def _layer_faults(source, array):
  array = np.asarray(array)
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
  wrong = array[(array != 0) & (array != 1) & (array != -1)]
  if wrong.size:
    raise errors.InputError(
      f"{source}: got {wrong[0]} in {wrong.size} of {array.size} cells, "
      "allowed are 1 (stuck on), -1 (stuck off) and 0 (healthy)"
    )
  return array.astype(np.int8)


def _check_fit(faults, shapes):
  """Checks that a map is of the net's layers; it may be of a wider net."""
  for name, array in faults.items():
    if name not in shapes:
      raise errors.InputError(
        f"faults: got layer {name}, allowed are {', '.join(shapes)}"
      )
    got, needed = array.shape, shapes[name]
    enough = all(a >= b for a, b in zip(got, needed, strict=True))
    if not enough or got[3:] != needed[3:]:
      raise errors.InputError(
        f"faults: layer {name}: got an array of shape {got}, needed is "
        f"{needed}, or more slices or tiles"
      )


def _text(value):
  """A scalar of text; HDF5 has it as bytes."""
  return value.decode() if isinstance(value, bytes) else str(value)


def _layers_of(metadata, path):
  """Names of an exported chip's layers."""
  try:
    metadata = json.loads(metadata)
    got = (metadata.get("format"), metadata.get("version"))
    layers = list(metadata.get("layers", ()))
  except (ValueError, AttributeError, TypeError) as error:
    raise errors.InputError(
      f"{path}: {_METADATA}: got no JSON object, needed is that of "
      "export_chip; a fault map has no array of this name"
    ) from error
  if got != (_FORMAT, _VERSION):
    raise errors.InputError(
      f"{path}: {_METADATA}: got format {got[0]!r}, version {got[1]!r}, "
      f"allowed is {_FORMAT!r}, version {_VERSION}"
    )
  return layers


@contextlib.contextmanager
def _open(path) -> Iterator[Mapping[str, Any]]:
  """Yields {name: array, read when indexed}."""
  if path.suffix == ".npz":
    # np.load leaves a damaged file open if it opened it.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
      yield arrays
    return
  import h5py

  with h5py.File(path, "r") as file:
    arrays = {}

    def visit(name, item):
      if isinstance(item, h5py.Dataset):
        arrays[name] = item

    file.visititems(visit)
    yield arrays


def _write(path, arrays):
  with _replaced(path) as partial:
    if path.suffix == ".npz":
      _write_npz(partial, arrays)
    else:
      _write_hdf5(partial, arrays)


def _write_npz(path, arrays):
  """As np.savez_compressed, which takes no layer called "file"."""
  # Level 6, the usual one, takes twice as long for 7 % less.
  with zipfile.ZipFile(
    path, "w", zipfile.ZIP_DEFLATED, compresslevel=1
  ) as archive:
    for name, array in arrays.items():
      with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)


def _write_hdf5(path, arrays):
  import h5py

  try:
    with h5py.File(path, "w") as file:
      for name, array in arrays.items():
        if array.ndim:
          file.create_dataset(
            name, data=array, compression="gzip", shuffle=True, fletcher32=True
          )
        else:
          file[name] = str(array)
  except (RuntimeError, TypeError, ValueError) as error:
    # A layer inside another one, or what the system refuses.
    raise OSError(str(error)) from error


@contextlib.contextmanager
def _replaced(path) -> Iterator[pathlib.Path]:
  """Yields the path of a partial file, which then replaces `path`."""
  partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  try:
    with files.write_errors(path):
      path.parent.mkdir(parents=True, exist_ok=True)
      yield partial
      with partial.open("rb") as file:
        os.fsync(file.fileno())
      partial.replace(path)
  finally:
    with contextlib.suppress(OSError):
      partial.unlink()
