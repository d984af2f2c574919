"""Chips, fault maps and weights in files: schema, round trips, bad files."""

import dataclasses
import errno
import json
import re
import sys

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from hawis_jax import counterparts
from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax import interop
from hawis_jax import resnet
from hawis_jax import variables
from hawis_jax.crossbar import cells as cells_lib

_program = jax.jit(crossbar.program, static_argnames="bits")
_conductances = jax.jit(crossbar.conductances, static_argnames="bits")
_SUFFIXES = (".npz", ".hdf5", ".h5")
_KINDS = ("target", "actual", "faults")
# (bits, cell_bits): binary, one analog cell, slices.
_CELLS = ((1, 0), (8, 0), (8, 2))


def _key():
  return jax.random.key(np.random.default_rng().integers(2**31))


def _net(bits=1):
  """Variables of three layers: integers of `bits` times a scale."""
  top = max(2 ** (bits - 1) - 1, 1)
  rng = np.random.default_rng()
  shapes = {
    ("head",): (6, 5),
    ("stage1_block0", "conv1"): (3, 3, 4, 9),
    ("stem",): (3, 2, 5, 4),
  }
  flat = {}
  for path, shape in shapes.items():
    integers = rng.integers(-top, top + 1, shape)
    integers.flat[0] = top
    scale = np.float32(rng.uniform(0.1, 10))
    flat[(*path, "kernel")] = integers.astype(np.float32) * scale
  flat["bn_stem", "scale"] = rng.normal(size=4).astype(np.float32)
  return {"params": traverse_util.unflatten_dict(flat)}


def _random(module, image_shape, dtype=np.float32):
  """Variables of a network."""
  rng = np.random.default_rng()
  flat = traverse_util.flatten_dict(variables.shapes(module, image_shape))
  return traverse_util.unflatten_dict(
    {p: jnp.asarray(rng.normal(size=x.shape), dtype) for p, x in flat.items()}
  )


def _kernels(net):
  """{"scope/layer": kernel}."""
  flat = traverse_util.flatten_dict(net["params"], sep="/")
  return {
    name.removesuffix("/kernel"): kernel
    for name, kernel in flat.items()
    if name.endswith("/kernel")
  }


def _weights(chip):
  flat = traverse_util.flatten_dict(chip["crossbar"], sep="/")
  return {
    name.removesuffix("/weight"): np.asarray(w) for name, w in flat.items()
  }


def _device(cell_bits=0, **fields):
  return crossbar.Device(tile_shape=(16, 8), cell_bits=cell_bits, **fields)


def _bad_device(cell_bits):
  """With the same effects everywhere, so that few programs are compiled."""
  return _device(
    cell_bits, stuck_on=0.1, stuck_off=0.2, variation=0.4, dead_rows=0.1
  )


def _read(path):
  """({name: array}, metadata) without our code."""
  if path.suffix == ".npz":
    with np.load(path, allow_pickle=False) as file:
      arrays = dict(file)
    return arrays, json.loads(str(arrays.pop("metadata")))
  h5py = pytest.importorskip("h5py")
  arrays = {}

  def visit(name, item):
    if isinstance(item, h5py.Dataset):
      arrays[name] = item[()]

  with h5py.File(path, "r") as file:
    file.visititems(visit)
  return arrays, json.loads(arrays.pop("metadata"))


def _path(folder, suffix, name="chip"):
  if suffix != ".npz":
    pytest.importorskip("h5py")
  return folder / f"{name}{suffix}"


def _assert_same(got, expected):
  assert got.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(got[name], array, err_msg=name)


@pytest.mark.parametrize("suffix", _SUFFIXES)
@pytest.mark.parametrize("bits, cell_bits", _CELLS)
def test_schema(tmp_path, suffix, bits, cell_bits):
  net, key = _net(bits), _key()
  device = _bad_device(cell_bits)
  path = _path(tmp_path / "new folder", suffix)
  interop.export_chip(path, key, net, device, bits, write=3)
  arrays, metadata = _read(path)
  assert [x.name for x in path.parent.iterdir()] == [path.name]
  kernels = _kernels(net)
  assert arrays.keys() == {f"{x}/{kind}" for x in kernels for kind in _KINDS}
  ideal = crossbar.without_effects(device)
  for layer, name in enumerate(sorted(kernels)):
    kernel = kernels[name]
    rows, columns = kernel.size // kernel.shape[-1], kernel.shape[-1]
    assert metadata["layers"][name] == {
      "kernel": list(kernel.shape),
      "rows": rows,
      "columns": columns,
    }
    slices = 4 if cell_bits else 1
    shape = (slices, -(-rows // 16), -(-columns // 8), 2, 16, 8)
    target, actual, faults = (arrays[f"{name}/{kind}"] for kind in _KINDS)
    assert target.shape == actual.shape == faults.shape == shape
    assert target.dtype == actual.dtype == np.float32
    assert faults.dtype == np.int8
    layer_key = jax.random.fold_in(key, layer)
    for got, cells in ((target, ideal), (actual, device)):
      if name != "stage1_block0/conv1":
        continue  # a program a layer; weights of all are tested below
      g_pos, g_neg = _conductances(layer_key, kernel, cells, bits=bits, write=3)
      expected = np.stack([g_pos, g_neg], axis=-3).reshape(shape)
      np.testing.assert_allclose(got, expected, rtol=1e-5)
    alive = actual > 0
    level = {1: device.g_on, -1: device.g_off}
    for state, g in level.items():
      stuck = (faults == state) & alive
      assert stuck.any()
      np.testing.assert_array_equal(actual[stuck], np.float32(g))
    # Variation brings hardly any healthy cell back to its target.
    healthy = actual[faults == 0]
    assert np.isin(healthy, np.float32([*level.values()])).sum() < 3
  assert metadata["format"] == "hawis_jax chip" and metadata["version"] == 1
  assert metadata["hawis_jax"]
  assert metadata["bits"] == bits and metadata["write"] == 3
  assert metadata["row_order"] == ["c_in", "kh", "kw"]
  data = jnp.asarray(metadata["key"]["data"], jnp.uint32)
  again = jax.random.wrap_key_data(data, impl=metadata["key"]["impl"])
  assert again == key
  fields = {
    field: tuple(value) if isinstance(value, list) else value
    for field, value in metadata["device"].items()
  }
  assert crossbar.Device(**fields) == device


def _assembled(arrays, metadata, name, kind):
  """Effective kernel of a layer by NumPy, weight by weight."""
  g = arrays[f"{name}/{kind}"].astype(np.float64)
  steps, device = metadata["steps"], metadata["device"]
  share = (g[:, :, :, 0] - g[:, :, :, 1]) / (device["g_on"] - device["g_off"])
  layer = metadata["layers"][name]
  *_, tile_rows, tile_columns = g.shape
  matrix = np.zeros((layer["rows"], layer["columns"]))
  for cell_slice in range(len(g)):
    for row in range(layer["rows"]):
      for column in range(layer["columns"]):
        i, r = divmod(row, tile_rows)
        j, c = divmod(column, tile_columns)
        matrix[row, column] += (
          (steps + 1) ** cell_slice * steps * share[cell_slice, i, j, r, c]
        )
  *taps, c_in, c_out = layer["kernel"]
  return np.moveaxis(matrix.reshape(c_in, *taps, c_out), 0, -2)


@pytest.mark.parametrize("bits, cell_bits", _CELLS)
def test_numpy_finds_the_effective_weights(tmp_path, bits, cell_bits):
  net, key = _net(bits), _key()
  device = _bad_device(cell_bits)
  interop.export_chip(tmp_path / "chip.npz", key, net, device, bits)
  arrays, metadata = _read(tmp_path / "chip.npz")
  chip = _weights(_program(key, net, device, bits=bits))
  for name, kernel in _kernels(net).items():
    top = 2 ** (bits - 1) - 1 if bits > 1 else 1
    integers = np.round(kernel / np.abs(kernel).max() * top)
    got = _assembled(arrays, metadata, name, "target")
    np.testing.assert_allclose(got, integers, atol=1e-4)
    got = _assembled(arrays, metadata, name, "actual")
    np.testing.assert_allclose(got, chip[name], rtol=1e-5, atol=1e-4)
    assert np.abs(chip[name] - integers).max() > 0.1


@pytest.mark.parametrize("suffix", _SUFFIXES)
@pytest.mark.parametrize("bits, cell_bits", _CELLS)
def test_loaded_faults_make_the_same_chip(tmp_path, suffix, bits, cell_bits):
  net, key = _net(bits), _key()
  device = _device(cell_bits, stuck_on=0.2, stuck_off=0.15)
  path = _path(tmp_path, suffix)
  interop.export_chip(path, key, net, device, bits)
  faults = interop.load_faults(path)
  expected = _weights(_program(key, net, device, bits=bits))
  ideal = _device(cell_bits)
  for _ in range(2):
    chip = _program(_key(), net, ideal, bits=bits, faults=faults)
    _assert_same(_weights(chip), expected)
    # And again from a bare map.
    interop.save_faults(path, faults)
    loaded = interop.load_faults(path)
    _assert_same(loaded, faults)
    assert {x.dtype for x in loaded.values()} == {np.dtype(np.int8)}
    faults = loaded
  # Exporting them again, beside an ideal device, finds them too.
  interop.export_chip(path, _key(), net, ideal, bits, faults=faults)
  _assert_same(interop.load_faults(path), faults)


@pytest.mark.parametrize("p_on, p_off", [(0.02, 0.09), (0.5, 0.5), (0, 0.3)])
def test_fault_counts_are_binomial(tmp_path, p_on, p_off):
  net = {"params": {"head": {"kernel": jnp.ones((256, 192))}}}
  device = crossbar.Device(stuck_on=p_on, stuck_off=p_off)
  interop.export_chip(tmp_path / "chip.npz", _key(), net, device)
  faults = interop.load_faults(tmp_path / "chip.npz")["head"]
  for array in np.moveaxis(faults, 3, 0):
    for state, p in ((1, p_on), (-1, p_off)):
      count = int((array == state).sum())
      assert stats.binomtest(count, array.size, p).pvalue > 1e-6
  both = (faults[:, :, :, 0] != 0) & (faults[:, :, :, 1] != 0)
  p = (p_on + p_off) ** 2
  assert stats.binomtest(int(both.sum()), both.size, p).pvalue > 1e-6


def test_measured_faults_go_before_those_drawn(tmp_path):
  """Also of a wider net's map, and with variation, which they have not."""
  rng = np.random.default_rng()
  net, key = _net(), _key()
  faults = {"stem": rng.choice([-1, 0, 0, 1], (1, 4, 2, 2, 16, 8))}
  device = _device(stuck_on=0.1, stuck_off=0.2, variation=0.5)
  interop.export_chip(tmp_path / "drawn.npz", key, net, device)
  interop.export_chip(tmp_path / "both.npz", key, net, device, faults=faults)
  arrays, metadata = _read(tmp_path / "both.npz")
  drawn = interop.load_faults(tmp_path / "drawn.npz")
  given = faults["stem"][:, :2, :1]
  expected = np.where(given == 0, drawn["stem"], given)
  both = interop.load_faults(tmp_path / "both.npz")
  _assert_same(both, {**drawn, "stem": expected})
  stuck = arrays["stem/actual"][given != 0]
  assert set(stuck) == set(np.float32([device.g_on, device.g_off]))
  chip = _weights(_program(key, net, device, faults=faults))
  for name, weights in chip.items():
    got = _assembled(arrays, metadata, name, "actual")
    np.testing.assert_allclose(got, weights, rtol=1e-4, atol=1e-4)


def test_device_of_one_of_several_chips(tmp_path):
  """Its numbers are arrays of no dimension, what is absent None."""
  device = _device(stuck_off=0.25)
  several = crossbar.stack([device, _device()])
  one = jax.tree.map(lambda x: x[0], several)
  net, key = _net(), _key()
  for name, cells in (("a", device), ("b", one)):
    interop.export_chip(tmp_path / f"{name}.npz", key, net, cells)
  (a, _), (b, metadata) = (_read(tmp_path / f"{x}.npz") for x in "ab")
  for name, array in a.items():
    np.testing.assert_allclose(b[name], array, rtol=1e-6)
  assert metadata["device"]["stuck_off"] == 0.25
  assert metadata["device"]["dead_rows"] == 0
  with pytest.raises(errors.InputError, match="device.g_on: got Array"):
    interop.export_chip(tmp_path / "c.npz", key, net, several)


@pytest.mark.parametrize("suffix", _SUFFIXES)
def test_same_chip_is_the_same_file(tmp_path, suffix):
  net, key = _net(), _key()
  files = [_path(tmp_path, suffix, name) for name in "ab"]
  for path in files:
    interop.export_chip(path, key, net, _device(stuck_off=0.1))
  assert files[0].read_bytes() == files[1].read_bytes()


def test_cells_are_those_of_the_programmed_chip():
  """Of a network of this project: names, tiles, and the weights they make."""
  module = resnet.cifar_resnet(8, (4, 9, 3, 6, 7, 2, 8), 10, levels=8)
  net = _random(module, (8, 8, 1))
  device = crossbar.Device(variation=0.3, tile_shape=(32, 8))
  key = _key()
  chip = _weights(_program(key, net, device))
  cells = jax.jit(cells_lib.chip_cells)(key, net, device)
  assert cells.keys() == chip.keys()
  for name, layer in cells.items():
    g = np.asarray(layer.conductances, np.float64)[0]
    rows, columns = g.shape[0] * g.shape[3], g.shape[1] * g.shape[4]
    matrix = (g[:, :, 0] - g[:, :, 1]) / (device.g_on - device.g_off)
    matrix = matrix.transpose(0, 2, 1, 3).reshape(rows, columns)
    *taps, c_in, c_out = chip[name].shape
    matrix = matrix[: chip[name].size // c_out, :c_out]
    kernel = np.moveaxis(matrix.reshape(c_in, *taps, c_out), 0, -2)
    np.testing.assert_allclose(kernel, chip[name], rtol=1e-4, atol=1e-5)


def _bad(match, path, call):
  """The call fails with one line, and leaves the folder as it was."""
  before = {x: x.read_bytes() for x in path.parent.iterdir() if x.is_file()}
  with pytest.raises(errors.InputError, match=match) as caught:
    call()
  assert "\n" not in str(caught.value)
  after = {x: x.read_bytes() for x in path.parent.iterdir() if x.is_file()}
  assert after == before


@pytest.mark.parametrize(
  "faults, match",
  [
    ({}, "got no layer"),
    ({"x": np.zeros((1, 1, 1, 2, 4, 4))}, "got type float64, allowed are int"),
    ({"x": np.zeros((1, 1, 1, 2, 4, 4), bool)}, "got type bool, allowed are"),
    ({"x": np.zeros((1, 1, 2, 4, 4), int)}, r"\(1, 1, 2, 4, 4\), needed"),
    ({"x": np.zeros((1, 1, 1, 3, 4, 4), int)}, r"\(1, 1, 1, 3, 4, 4\), ne"),
    ({"x": np.zeros((1, 0, 1, 2, 4, 4), int)}, r"\(1, 0, 1, 2, 4, 4\), ne"),
    ({"x": np.full((1, 1, 1, 2, 4, 4), 2)}, "got 2 in 32 of 32 cells, allowed"),
    ({"x": np.full((1, 1, 1, 2, 4, 4), 255, np.uint8)}, "got 255 in 32 of 32"),
  ],
)
def test_bad_fault_maps(tmp_path, faults, match):
  if faults:
    match = f"layer x: .*{match}"
  path = tmp_path / "faults.npz"
  path.write_bytes(b"old")
  _bad(f"faults: {match}", path, lambda: interop.save_faults(path, faults))
  call = lambda: interop.export_chip(  # noqa: E731
    path, _key(), _net(), _device(), faults=faults
  )
  _bad(f"faults: {match}", path, call)
  np.savez(path, **faults)
  match = f"{re.escape(str(path))}: {match}"
  _bad(match, path, lambda: interop.load_faults(path))
  h5py = pytest.importorskip("h5py")
  path = path.with_suffix(".h5")
  with h5py.File(path, "w") as file:
    for name, array in faults.items():
      file[name] = array
  match = match.replace("npz", "h5")
  _bad(match, path, lambda: interop.load_faults(path))


@pytest.mark.parametrize(
  "faults, match",
  [
    (
      {"stam": (1, 2, 1, 2, 16, 8)},
      ": got layer 'stam', allowed are head, stage1",
    ),
    (
      {"stem": (1, 1, 1, 2, 16, 8)},
      r" of stem: .* needed is at least \(1, 2, 1, 2,",
    ),
    (
      {"stem": (1, 2, 1, 2, 16, 9)},
      r" of stem: got .* \(1, 2, 1, 2, 16, 9\)",
    ),
  ],
)
def test_faults_of_another_net(tmp_path, faults, match):
  path = tmp_path / "chip.npz"
  faults = {name: np.zeros(shape, np.int8) for name, shape in faults.items()}
  call = lambda: interop.export_chip(  # noqa: E731
    path, _key(), _net(), _device(), faults=faults
  )
  _bad(f"faults{match}", path, call)


def test_bad_metadata(tmp_path):
  path = tmp_path / "chip.npz"
  interop.export_chip(path, _key(), _net(), _device())
  arrays, metadata = _read(path)

  def change(match, text, arrays):
    np.savez(path, metadata=np.array(text), **arrays)
    _bad(match, path, lambda: interop.load_faults(path))

  for text in ("no JSON", "[1, 2]", json.dumps({**metadata, "layers": 1})):
    change("chip.npz: metadata: got no JSON object", text, arrays)
  newer = json.dumps({**metadata, "version": 2})
  change("got format 'hawis_jax chip', version 2, allowed", newer, arrays)
  change("got format None, version None", "{}", arrays)
  del arrays["stem/faults"]
  change("layer stem: got no array stem/faults", json.dumps(metadata), arrays)
  faults = {"metadata": np.zeros((1, 1, 1, 2, 4, 4), np.int8)}
  _bad("layer 'metadata'", path, lambda: interop.save_faults(path, faults))


@pytest.mark.parametrize("suffix", _SUFFIXES)
def test_damaged_files(tmp_path, suffix):
  path = _path(tmp_path, suffix)
  call = lambda: interop.load_faults(path)  # noqa: E731
  _bad(f"chip{suffix}: no such file", path, call)
  path.mkdir()
  _bad(f"chip{suffix}: no such file", path, call)
  path.rmdir()
  interop.export_chip(path, _key(), _net(), _device(stuck_on=0.3))
  whole = path.read_bytes()
  bad = [b"", b"no chip", b"\0" * 100, whole[:-200], whole[: len(whole) // 2]]
  for content in bad:
    path.write_bytes(content)
    _bad(f"chip{suffix}: can't be read as {suffix}: ", path, call)


@pytest.mark.parametrize("suffix", _SUFFIXES)
def test_flipped_bits_are_noticed(tmp_path, suffix):
  """Of the faults' data; zip and HDF5 sum it up."""
  path = _path(tmp_path, suffix)
  rng = np.random.default_rng()
  faults = {"stem": rng.integers(-1, 2, (1, 8, 8, 2, 16, 16)).astype(np.int8)}
  interop.save_faults(path, faults)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 4  # amid the data, which is most of the file
  path.write_bytes(content)
  _bad("can't be read as", path, lambda: interop.load_faults(path))


def test_objects_are_not_unpickled(tmp_path):
  path = tmp_path / "chip.npz"
  np.savez(path, stem=np.array([{}], dtype=object))
  _bad("can't be read as .npz", path, lambda: interop.load_faults(path))


@pytest.mark.parametrize("name", ["chip", "chip.json", "chip.NPZ"])
def test_other_suffixes(tmp_path, name):
  path = tmp_path / name
  path.write_bytes(b"old")
  faults = {"stem": np.zeros((1, 1, 1, 2, 4, 4), np.int8)}
  match = f"{name}: got suffix .*, allowed are .npz, .hdf5, .h5"
  for call in (
    lambda: interop.export_chip(path, _key(), _net(), _device()),
    lambda: interop.save_faults(path, faults),
    lambda: interop.load_faults(path),
  ):
    _bad(match, path, call)
  match = "got suffix .*, allowed are .safetensors"
  _bad(match, path, lambda: interop.export_weights(path, _net()))


def test_hdf5_needs_h5py(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "h5py", None)
  path = tmp_path / "chip.h5"
  path.write_bytes(b"old")
  faults = {"stem": np.zeros((1, 1, 1, 2, 4, 4), np.int8)}
  match = r"chip.h5: needs the package h5py: install hawis_jax\[hdf5\], or use"
  for call in (
    lambda: interop.export_chip(path, _key(), _net(), _device()),
    lambda: interop.save_faults(path, faults),
    lambda: interop.load_faults(path),
  ):
    _bad(match, path, call)
  interop.export_chip(tmp_path / "chip.npz", _key(), _net(), _device())


def test_bad_bits_and_devices(tmp_path):
  path = tmp_path / "chip.npz"
  path.write_bytes(b"old")

  def call(bits=1, **fields):
    device = dataclasses.replace(_device(), **fields)
    interop.export_chip(path, _key(), _net(), device, bits)

  _bad("bits of .*: got 32, allowed are 1 to 8", path, lambda: call(32))
  _bad("device.stuck_on: got 2", path, lambda: call(stuck_on=2.0))
  _bad(
    "variables: got crossbar, needed",
    path,
    lambda: interop.export_weights(
      path.with_suffix(".safetensors"), {"crossbar": {}}
    ),
  )


@pytest.mark.parametrize("suffix", [*_SUFFIXES, ".safetensors"])
def test_full_disk_leaves_the_old_file(tmp_path, suffix, monkeypatch):
  path = _path(tmp_path, suffix)
  path.write_bytes(b"old")
  full = OSError(errno.ENOSPC, "No space left on device")

  def fail(*args, **kwargs):
    raise full

  def call():
    if suffix == ".safetensors":
      interop.export_weights(path, _net())
    else:
      interop.export_chip(path, _key(), _net(), _device())

  with monkeypatch.context() as patch:
    patch.setattr("os.fsync", fail)
    _bad(f"can't write {re.escape(str(path))}: .*No space", path, call)
  with monkeypatch.context() as patch:
    if suffix == ".npz":
      patch.setattr("numpy.lib.format.write_array", fail)
    elif suffix == ".safetensors":
      patch.setattr("pathlib.Path.write_bytes", fail)
    else:
      patch.setattr("h5py.Group.create_dataset", fail)
    _bad("can't write .*No space", path, call)
  call()
  assert path.read_bytes() != b"old"


@pytest.mark.parametrize("suffix", [*_SUFFIXES, ".safetensors"])
def test_unwritable_places(tmp_path, suffix):
  (tmp_path / "file").write_bytes(b"old")
  path = _path(tmp_path / "file", suffix)
  with pytest.raises(errors.InputError, match="can't write"):
    if suffix == ".safetensors":
      interop.export_weights(path, _net())
    else:
      interop.export_chip(path, _key(), _net(), _device())
  assert [x.name for x in tmp_path.iterdir()] == ["file"]


def test_hdf5_holds_no_layer_in_a_layer(tmp_path):
  path = _path(tmp_path, ".h5")
  map_ = np.zeros((1, 1, 1, 2, 4, 4), np.int8)
  faults = {"stem": map_, "stem/conv": map_}
  _bad("can't write", path, lambda: interop.save_faults(path, faults))
  path = tmp_path / "faults.npz"
  faults = {**faults, "file": map_}
  interop.save_faults(path, faults)
  _assert_same(interop.load_faults(path), faults)


_WIDTHS = (4, 5, 3, 6, 7, 2, 8)
_NETS = {
  "binary": resnet.cifar_resnet(8, _WIDTHS, 10),
  "int8": counterparts.cifar_counterpart(8, _WIDTHS, 10, bits=8),
  "float": counterparts.imagenet_counterpart(18, 10, tuple(range(2, 19))),
}


@pytest.mark.parametrize("name", _NETS)
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_exported_weights_are_read_back(tmp_path, name, dtype):
  module = _NETS[name]
  size = 64 if name == "float" else 32
  net = _random(module, (size, size, 3), dtype)
  flat = traverse_util.flatten_dict(net)
  path = tmp_path / "new" / "net.safetensors"
  interop.export_weights(path, {**net, "crossbar": {"stem": np.zeros(3)}})
  assert [x.name for x in path.parent.iterdir()] == [path.name]
  got = traverse_util.flatten_dict(interop.from_torch_state_dict(path, module))
  assert got.keys() == flat.keys()
  for p, array in flat.items():
    assert got[p].dtype == array.dtype and got[p].shape == array.shape
    np.testing.assert_array_equal(got[p], array, err_msg=str(p))
  state = interop.load_state_dict(path)
  assert "conv1.weight" in state or "conv1_1.weight" in state
