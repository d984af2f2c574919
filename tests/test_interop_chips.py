"""Chips, fault maps and weights in files: schema, round trips, bad files."""

import dataclasses
import errno
import functools
import json
import re
import sys

from flax import traverse_util
import jax
import numpy as np
import pytest

from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax import interop

try:
  import h5py
except ImportError:
  h5py = None

_program = jax.jit(
  functools.partial(crossbar.program, scales="channel"), static_argnames="bits"
)
_export_chip = functools.partial(interop.export_chip, scales="channel")
_SUFFIXES = (".npz", ".hdf5", ".h5")  # the last two are the same format
_KINDS = ("target", "actual", "faults")
# (bits, cell_bits): binary, one analog cell, slices.
_CELLS = ((1, 0), (8, 0), (8, 2))
_SHAPES = {
  "head": (6, 5),
  "stage1_block0/conv1": (3, 3, 4, 9),
  "stem": (3, 2, 5, 4),
}
_KEY = jax.random.key(7)


def _key(rng):
  return jax.random.key(rng.integers(2**31))


def _integers(rng, bits):
  """{layer: integers}, the largest one in every column."""
  top = max(2 ** (bits - 1) - 1, 1)
  integers = {
    name: rng.integers(-top, top + 1, shape) for name, shape in _SHAPES.items()
  }
  for layer in integers.values():
    layer.reshape(-1, layer.shape[-1])[0] = top
  return integers


def _net(integers):
  """Variables of which they are the weights, but for a scale a layer."""
  params = {
    f"{name}/kernel": layer.astype(np.float32) * np.float32(0.3 + len(name))
    for name, layer in integers.items()
  }
  params["bn_stem/scale"] = np.ones(4, np.float32)
  return {"params": traverse_util.unflatten_dict(params, sep="/")}


def _some_net():
  return _net(_integers(np.random.default_rng(1), 1))


def _weights(chip):
  flat = traverse_util.flatten_dict(jax.device_get(chip["crossbar"]), sep="/")
  return {name.removesuffix("/weight"): w for name, w in flat.items()}


def _device(cell_bits=0, **fields):
  return crossbar.Device(tile_shape=(16, 8), cell_bits=cell_bits, **fields)


def _export(path, device=None, **options):
  device = _device() if device is None else device
  _export_chip(path, _KEY, _some_net(), device, **options)


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
  if suffix in (".hdf5", ".h5"):
    pytest.importorskip("h5py")
  return folder / f"{name}{suffix}"


def _assert_same(got, expected):
  assert got.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(got[name], array, err_msg=name)


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
def test_numpy_finds_the_programmed_chip_in_its_file(
  rng, tmp_path, bits, cell_bits
):
  """By the schema as documented, in every format."""
  integers, key = _integers(rng, bits), _key(rng)
  net = _net(integers)
  device = _device(
    cell_bits, stuck_on=0.1, stuck_off=0.2, variation=0.4, dead_rows=0.1
  )
  chip = _weights(_program(key, net, device, bits=bits, write=3))
  path = _path(tmp_path / "new folder", ".npz")
  _export_chip(path, key, net, device, bits, write=3)
  arrays, metadata = _read(path)
  assert [x.name for x in path.parent.iterdir()] == [path.name]
  assert arrays.keys() == {f"{x}/{kind}" for x in _SHAPES for kind in _KINDS}
  for name, shape in _SHAPES.items():
    rows, columns = np.prod(shape[:-1]), shape[-1]
    assert metadata["layers"][name] == {
      "kernel": list(shape),
      "rows": rows,
      "columns": columns,
    }
    slices = 4 if cell_bits else 1
    shape = (slices, -(-rows // 16), -(-columns // 8), 2, 16, 8)
    target, actual, faults = (arrays[f"{name}/{kind}"] for kind in _KINDS)
    assert target.shape == actual.shape == faults.shape == shape
    assert target.dtype == actual.dtype == np.float32
    assert faults.dtype == np.int8
    # One cell of a pair is off, and their difference is the weight.
    np.testing.assert_array_equal(target.min(3), np.float32(device.g_off))
    got = _assembled(arrays, metadata, name, "target")
    np.testing.assert_allclose(got, integers[name], atol=1e-4)
    got = _assembled(arrays, metadata, name, "actual")
    np.testing.assert_allclose(got, chip[name], rtol=1e-5, atol=1e-4)
    assert np.abs(chip[name] - integers[name]).max() > 0.1
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
  data = np.array(metadata["key"]["data"], np.uint32)
  again = jax.random.wrap_key_data(data, impl=metadata["key"]["impl"])
  assert again == key
  fields = {
    field: tuple(value) if isinstance(value, list) else value
    for field, value in metadata["device"].items()
  }
  assert crossbar.Device(**fields) == device
  for suffix in _SUFFIXES[1:]:
    path = _path(tmp_path, suffix)
    _export_chip(path, key, net, device, bits, write=3)
    found, found_metadata = _read(path)
    assert found_metadata == metadata
    _assert_same(found, arrays)


@pytest.mark.parametrize("bits, cell_bits", _CELLS)
@pytest.mark.exact
def test_loaded_faults_make_the_same_chip(rng, tmp_path, bits, cell_bits):
  net, key = _net(_integers(rng, bits)), _key(rng)
  device = _device(cell_bits, stuck_on=0.2, stuck_off=0.15)
  ideal = _device(cell_bits)
  expected = _weights(_program(key, net, device, bits=bits))
  for suffix in (".npz", ".h5"):
    path = _path(tmp_path, suffix)
    _export_chip(path, key, net, device, bits)
    faults = interop.load_faults(path)
    chip = _program(_key(rng), net, ideal, bits=bits, faults=faults)
    _assert_same(_weights(chip), expected)
    # And again from a bare map.
    interop.save_faults(path, faults)
    loaded = interop.load_faults(path)
    _assert_same(loaded, faults)
    assert {x.dtype for x in loaded.values()} == {np.dtype(np.int8)}
    # Exporting them again, beside an ideal device, finds them too.
    _export_chip(path, _key(rng), net, ideal, bits, faults=faults)
    _assert_same(interop.load_faults(path), faults)


def test_measured_faults_go_before_those_drawn(rng, tmp_path):
  """Also of a wider net's map, and with variation, which they have not."""
  faults = {"stem": rng.choice(np.int8([-1, 0, 0, 1]), (1, 4, 2, 2, 16, 8))}
  device = _device(stuck_on=0.1, stuck_off=0.2, variation=0.5)
  _export(tmp_path / "drawn.npz", device)
  _export(tmp_path / "both.npz", device, faults=faults)
  arrays, metadata = _read(tmp_path / "both.npz")
  drawn = interop.load_faults(tmp_path / "drawn.npz")
  given = faults["stem"][:, :2, :1]
  expected = np.where(given == 0, drawn["stem"], given)
  both = interop.load_faults(tmp_path / "both.npz")
  _assert_same(both, {**drawn, "stem": expected})
  stuck = arrays["stem/actual"][given != 0]
  assert set(stuck) == set(np.float32([device.g_on, device.g_off]))
  chip = _weights(_program(_KEY, _some_net(), device, faults=faults))
  for name, weights in chip.items():
    got = _assembled(arrays, metadata, name, "actual")
    np.testing.assert_allclose(got, weights, rtol=1e-4, atol=1e-4)


def test_device_of_one_of_several_chips(tmp_path):
  """Its numbers are arrays of no dimension, what is absent None."""
  device = _device(stuck_off=0.25)
  several = crossbar.stack([device, _device()])
  one = jax.tree.map(lambda x: x[0], jax.device_get(several))
  for name, cells in (("a", device), ("b", one)):
    _export(tmp_path / f"{name}.npz", cells)
  (a, _), (b, metadata) = (_read(tmp_path / f"{x}.npz") for x in "ab")
  for name, array in a.items():
    np.testing.assert_allclose(b[name], array, rtol=1e-6)
  assert metadata["device"]["stuck_off"] == 0.25
  assert metadata["device"]["dead_rows"] == 0
  with pytest.raises(errors.InputError, match="device.g_on: got \\["):
    _export(tmp_path / "c.npz", several)


@pytest.mark.parametrize("suffix", _SUFFIXES)
def test_same_chip_is_the_same_file(tmp_path, suffix):
  files = [_path(tmp_path, suffix, name) for name in "ab"]
  for path in files:
    _export(path)
  assert files[0].read_bytes() == files[1].read_bytes()


def _bad(match, path, call, *arguments, **options):
  """The call fails with one line, and leaves the folder as it was."""
  before = {x: x.read_bytes() for x in path.parent.iterdir() if x.is_file()}
  with pytest.raises(errors.InputError, match=match) as caught:
    call(*arguments, **options)
  assert "\n" not in str(caught.value)
  after = {x: x.read_bytes() for x in path.parent.iterdir() if x.is_file()}
  assert after == before


@pytest.fixture
def path(tmp_path):
  """Of a file that must not change."""
  path = tmp_path / "chip.npz"
  path.write_bytes(b"old")
  return path


@pytest.mark.parametrize(
  "array, match",
  [
    (None, "got no layer"),
    (np.zeros((1, 1, 1, 2, 4, 4)), "got type float64, allowed are int"),
    (np.zeros((1, 1, 1, 2, 4, 4), bool), "got type bool, allowed are"),
    (np.zeros((1, 1, 2, 4, 4), int), r"\(1, 1, 2, 4, 4\), needed"),
    (np.zeros((1, 1, 1, 3, 4, 4), int), r"\(1, 1, 1, 3, 4, 4\), ne"),
    (np.zeros((1, 0, 1, 2, 4, 4), int), r"\(1, 0, 1, 2, 4, 4\), ne"),
    (np.full((1, 1, 1, 2, 4, 4), 2), "got 2 in 32 of 32 cells, allowed"),
    (np.full((1, 1, 1, 2, 4, 4), 255, np.uint8), "got 255 in 32 of 32"),
  ],
)
def test_bad_fault_maps(path, array, match):
  faults = {} if array is None else {"x": array}
  match = match if array is None else f"layer x: .*{match}"
  _bad(f"faults: {match}", path, interop.save_faults, path, faults)
  _bad(f"faults: {match}", path, _export, path, faults=faults)
  np.savez(path, **faults)
  _bad(f"{re.escape(str(path))}: {match}", path, interop.load_faults, path)
  h5py = pytest.importorskip("h5py")
  path = path.with_suffix(".h5")
  with h5py.File(path, "w") as file:
    for name, array in faults.items():
      file[name] = array
  _bad(f"{re.escape(str(path))}: {match}", path, interop.load_faults, path)


def test_faults_of_another_net(path):
  for name, shape, match in (
    ("stam", (1, 2, 1, 2, 16, 8), ": got layer 'stam', allowed are head, s"),
    ("stem", (1, 1, 1, 2, 16, 8), r" of stem: .* at least \(1, 2, 1, 2,"),
    ("stem", (1, 2, 1, 2, 16, 9), r" of stem: got .* \(1, 2, 1, 2, 16, 9\)"),
  ):
    faults = {name: np.zeros(shape, np.int8)}
    _bad(f"faults{match}", path, _export, path, faults=faults)


def test_bad_metadata(tmp_path):
  path = tmp_path / "chip.npz"
  _export(path)
  arrays, metadata = _read(path)

  def change(match, text):
    np.savez(path, metadata=np.array(text), **arrays)
    _bad(match, path, interop.load_faults, path)

  for text in ("no JSON", "[1, 2]", json.dumps({**metadata, "layers": 1})):
    change("chip.npz: metadata: got no JSON object", text)
  newer = json.dumps({**metadata, "version": 2})
  change("got format 'hawis_jax chip', version 2, allowed", newer)
  change("got format None, version None", "{}")
  del arrays["stem/faults"]
  change("layer stem: got no array stem/faults", json.dumps(metadata))
  faults = {"metadata": np.zeros((1, 1, 1, 2, 4, 4), np.int8)}
  _bad("layer 'metadata'", path, interop.save_faults, path, faults)


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_damaged_files(rng, tmp_path, suffix):
  path = _path(tmp_path, suffix)
  bad = functools.partial(_bad, path=path, call=lambda: load(path))
  load = interop.load_faults
  bad(f"chip{suffix}: no such file")
  path.mkdir()
  bad(f"chip{suffix}: no such file")
  path.rmdir()
  shape = (1, 8, 8, 2, 16, 16)
  faults = {"stem": rng.integers(-1, 2, shape).astype(np.int8)}
  interop.save_faults(path, faults)
  whole = path.read_bytes()
  # One bit amid the data, which is most of the file: zip and HDF5 sum it up.
  flipped = bytearray(whole)
  flipped[len(whole) // 2] ^= 4
  cut = whole[:-200], whole[: len(whole) // 2]
  for content in (b"", b"no chip", b"\0" * 100, *cut, flipped):
    path.write_bytes(content)
    bad(f"chip{suffix}: can't be read as {suffix}: ")


def test_objects_are_not_unpickled(path):
  np.savez(path, stem=np.array([{}], dtype=object))
  _bad("can't be read as .npz", path, interop.load_faults, path)


_SHAPE = (1, 1, 1, 2, 4, 4)


def _unwritten(file, folder):
  file.create_dataset("x", (1, 1, 1, 2, 10**6, 10**6), "i1")


def _one_chunk(file, folder):
  chunks = (1, 1, 1, 2, 1 << 15, 1 << 15)
  file.create_dataset("x", _SHAPE, "i1", maxshape=[None] * 6, chunks=chunks)


def _one_text(file, folder):
  texts = file.create_dataset("x", 2000, h5py.string_dtype())
  texts[0] = "x" * 2000


def _virtual(file, folder):
  layout = h5py.VirtualLayout(_SHAPE, "i1")
  layout[...] = h5py.VirtualSource(folder / "other.h5", "x", _SHAPE)
  file.create_virtual_dataset("x", layout)


def _external(file, folder):
  (folder / "outside").write_bytes(bytes(32))
  outside = [(folder / "outside", 0, 32)]
  file.create_dataset("x", _SHAPE, "i1", external=outside)


def _links(file, folder):
  file["loop"] = file["/"]
  file["soft"] = h5py.SoftLink("/nowhere")
  file["external"] = h5py.ExternalLink(folder / "other.h5", "/x")


@pytest.mark.skipif(h5py is None, reason="needs hawis_jax[hdf5]")
@pytest.mark.parametrize(
  "make, match",
  [
    (_unwritten, "got arrays of 2,000,000,000,000 bytes, allowed for a file"),
    (_one_chunk, "got arrays of 2,147,483,648 bytes, allowed for a file"),
    (_one_text, "got arrays of .* bytes, allowed for a file"),
    (_virtual, "x: got an array of other files, needed is one in this file"),
    (_external, "x: got an array of other files, needed is one in this file"),
    (_links, "got no layer, needed is one or more"),
  ],
)
def test_hdf5_files_that_hold_less_than_they_say(tmp_path, make, match):
  """Refused before memory is taken for it, or other files are opened."""
  path = tmp_path / "chip.h5"
  with h5py.File(path, "w") as file:
    make(file, tmp_path)
  _bad(match, path, interop.load_faults, path)


_NO_FAULTS = {"stem": np.zeros((1, 1, 1, 2, 4, 4), np.int8)}


def _all_are_bad(match, path):
  path.write_bytes(b"old")
  _bad(match, path, _export, path)
  _bad(match, path, interop.save_faults, path, _NO_FAULTS)
  _bad(match, path, interop.load_faults, path)


def test_other_suffixes(tmp_path):
  for name in ("chip", "chip.json", "chip.NPZ"):
    path = tmp_path / name
    _all_are_bad(f"{name}: got suffix .*, allowed are .npz, .hdf5, .h5", path)
    match = "got suffix .*, allowed are .safetensors"
    _bad(match, path, interop.export_weights, path, _some_net())


def test_hdf5_needs_h5py(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "h5py", None)
  match = r"chip.h5: needs the package h5py: install hawis_jax\[hdf5\], or use"
  _all_are_bad(match, tmp_path / "chip.h5")
  _export(tmp_path / "chip.npz")


def test_bad_bits_devices_and_variables(path):
  match = "bits of .*: got 32, allowed are 1 to 8"
  _bad(match, path, _export, path, bits=32)
  device = dataclasses.replace(_device(), stuck_on=2.0)
  _bad("device.stuck_on: got 2", path, _export, path, device)
  path = path.with_suffix(".safetensors")
  match, variables = "variables: got crossbar, needed", {"crossbar": {}}
  _bad(match, path, interop.export_weights, path, variables)


@pytest.mark.parametrize(
  "suffix, step",
  [
    (".npz", "numpy.lib.format.write_array"),
    (".h5", "h5py.Group.create_dataset"),
    (".safetensors", "pathlib.Path.write_bytes"),
  ],
)
def test_full_disk_leaves_the_old_file(tmp_path, suffix, step, monkeypatch):
  path = _path(tmp_path, suffix)
  path.write_bytes(b"old")
  full = OSError(errno.ENOSPC, "No space left on device")

  def fail(*args, **kwargs):
    raise full

  def call(path):
    if suffix == ".safetensors":
      interop.export_weights(path, _some_net())
    else:
      _export(path)

  for failing in ("os.fsync", step):
    with monkeypatch.context() as patch:
      patch.setattr(failing, fail)
      match = f"can't write {re.escape(str(path))}: .*No space"
      _bad(match, path, call, path)
  call(path)
  assert path.read_bytes() != b"old"
  # Nor is anything left where no file can be.
  (tmp_path / "file").write_bytes(b"old")
  _bad("can't write", path, call, tmp_path / "file" / path.name)
  assert {x.name for x in tmp_path.iterdir()} == {"file", path.name}


def test_hdf5_holds_no_layer_in_a_layer(tmp_path):
  path = _path(tmp_path, ".h5")
  array = _NO_FAULTS["stem"]
  faults = {"stem": array, "stem/conv": array}
  _bad("can't write", path, interop.save_faults, path, faults)
  path = tmp_path / "faults.npz"
  faults = {**faults, "file": array}
  interop.save_faults(path, faults)
  _assert_same(interop.load_faults(path), faults)
