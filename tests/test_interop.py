"""State dicts: names and layouts, round trips, files, and every misfit."""

import functools
import io
import os
import pickle
import re
import struct
import sys
import types
import zipfile

from flax import traverse_util
import jax.numpy as jnp
import numpy as np
import pytest

from hawis_jax import errors
from hawis_jax import interop
from hawis_jax.networks import net_variables
from hawis_jax.networks import reference_resnet
from hawis_jax.networks import resnet

_WIDTHS = (4, 5, 3, 6, 7, 2, 8)
_R18 = tuple(range(2, 19))
_NETS = {
  "binary_cifar": (resnet.cifar_resnet(8, _WIDTHS, 10), (32, 32, 3)),
  "binary_digits": (resnet.cifar_resnet(8, _WIDTHS, 10, levels=8), (8, 8, 1)),
  "binary_7x7": (resnet.imagenet_resnet18(_R18, 10, levels=2), (224, 224, 3)),
  "binary_3x3": (
    resnet.imagenet_resnet18(_R18, 10, "3x3", levels=2),
    (224, 224, 3),
  ),
  "binary_64_px": (
    resnet.imagenet_resnet18(_R18, 10, image_size=64, levels=2),
    (64, 64, 3),
  ),
  "float_cifar": (
    reference_resnet.cifar_reference(8, _WIDTHS, 10),
    (28, 28, 1),
  ),
  "int8_cifar": (
    reference_resnet.cifar_reference(8, _WIDTHS, 10, bits=8),
    (32, 32, 3),
  ),
  "float_r18": (
    reference_resnet.imagenet_reference(18, 10, _R18),
    (64, 64, 3),
  ),
  "float_r50": (
    reference_resnet.imagenet_reference(50, 10, (2,) * 49),
    (64, 64, 3),
  ),
}


@functools.cache
def _shapes(name):
  return traverse_util.flatten_dict(net_variables.shapes(*_NETS[name]))


def _random(rng, name, dtype=np.float32):
  """(module, random variables) of a net."""
  flat = {
    path: rng.normal(size=x.shape).astype(dtype)
    for path, x in _shapes(name).items()
  }
  return _NETS[name][0], traverse_util.unflatten_dict(flat)


def _assert_equal(got, expected):
  """Narrow floats have become float32, to the bit."""
  got, expected = (traverse_util.flatten_dict(x) for x in (got, expected))
  assert got.keys() == expected.keys()
  for path, array in expected.items():
    array = array.astype(np.promote_types(array.dtype, np.float32))
    assert got[path].dtype == array.dtype
    np.testing.assert_array_equal(got[path], array, err_msg=str(path))


@pytest.mark.parametrize("name", _NETS)
def test_round_trip(rng, name):
  for prefix, dtype in (
    ("", np.float32),
    ("module.", np.float64),
    ("_orig_mod.module.", jnp.bfloat16),
    ("", np.float16),
  ):
    module, net = _random(rng, name, dtype)
    state = interop.to_torch_state_dict(net)
    state = {f"{prefix}{key}": value for key, value in state.items()}
    state[f"{prefix}bn1.num_batches_tracked"] = np.array(7)
    state[f"{prefix}teacher_model.conv1.weight"] = np.zeros(3)
    _assert_equal(interop.from_torch_state_dict(state, module), net)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", ["binary_cifar", "int8_cifar", "float_r18"])
def test_exported_weights_are_read_back(rng, tmp_path, name, dtype):
  """Without the collection of a chip."""
  pytest.importorskip("safetensors")
  module, net = _random(rng, name, dtype)
  path = tmp_path / "new" / "net.safetensors"
  interop.export_weights(path, {**net, "crossbar": {"stem": np.zeros(3)}})
  assert [x.name for x in path.parent.iterdir()] == [path.name]
  _assert_equal(interop.from_torch_state_dict(path, module), net)
  state = interop.load_state_dict(path)
  assert "conv1.weight" in state or "conv1_1.weight" in state


def _published(names, blocks, block_names):
  """Names of a network: fields of the norms follow from the name."""
  for stage, count in enumerate(blocks, 1):
    for block in range(count):
      for name in block_names(stage, block):
        names.append(f"layer{stage}.{block}.{name}")
  result = set()
  for name in names:
    result.add(f"{name}.weight")
    if re.search(r"bn\d(_\d)?$|downsample\.1$", name):
      for field in ("bias", "running_mean", "running_var"):
        result.add(f"{name}.{field}")
  return result


def test_names_are_the_published_ones(rng):
  two = ["conv1", "bn1", "conv2", "bn2"]
  skip = ["downsample.0", "downsample.1"]
  stem = ["conv1_1", "bn1_1", "conv1_2", "conv1_2_r", "bn1_2", "fc"]
  r18 = _published(stem, (2, 2, 2, 2), lambda s, b: two + skip)
  conv1 = ["conv1", "bn1"]
  bottleneck = _published(
    [*conv1, "fc"],
    (3, 4, 6, 3),
    lambda s, b: [*two, "conv3", "bn3"] + (skip if s > 1 and b == 0 else []),
  )
  expected = {
    "binary_cifar": _published(
      [*conv1, "bn2", "linear"], (1, 1, 1), lambda s, b: two
    ),
    "binary_7x7": r18,
    "binary_3x3": r18 | {"conv1_1_r.weight"},
    "float_cifar": _published([*conv1, "linear"], (1, 1, 1), lambda s, b: two)
    | {"linear.bias"},
    "float_r50": bottleneck | {"fc.bias"},
  }
  for name, names in expected.items():
    state = interop.to_torch_state_dict(_random(rng, name)[1])
    assert state.keys() == names, name


def test_layouts_are_the_published_ones(rng):
  """One weight at a time: output, input, row, column; flat heads by channel."""
  _, net = _random(rng, "binary_7x7")
  state = interop.to_torch_state_dict(net)
  kernel = net["params"]["stage2_block1"]["conv2"]["kernel"]
  i, j, c_in, c_out = (rng.integers(n) for n in kernel.shape)
  assert (
    state["layer2.1.conv2.weight"][c_out, c_in, i, j]
    == kernel[i, j, c_in, c_out]
  )
  head = net["params"]["head"]["kernel"]
  i, j, c_in, c_out = (rng.integers(n) for n in head.shape)
  assert state["fc.weight"].shape == (10, 18 * 7 * 7)
  assert (
    state["fc.weight"][c_out, 49 * c_in + 7 * i + j] == head[i, j, c_in, c_out]
  )
  _, net = _random(rng, "binary_cifar")
  linear = interop.to_torch_state_dict(net)["linear.weight"]
  np.testing.assert_array_equal(linear.T, net["params"]["head"]["kernel"])


def test_one_error_lists_every_misfit(rng):
  module, net = _random(rng, "float_cifar")
  state = interop.to_torch_state_dict(net)
  state["module.bn1.bias"] = state["bn1.bias"]
  del state["layer1.0.bn2.running_var"], state["conv1.weight"]
  state["surprise.weight"] = np.zeros((2, 3))
  state["linear.weight"] = np.zeros((10, 5))
  state["linear.bias"] = np.arange(10)
  state["layer2.0.conv1.weight"][0, 0, 0, 0] = np.nan
  state["layer3.0.bn1.weight"][:2] = np.inf
  with pytest.raises(errors.InputError) as caught:
    interop.from_torch_state_dict(state, module)
  message = str(caught.value)
  assert "\n" not in message
  for part in (
    "state dict: 8 entries do not fit",
    "bn1.bias twice",
    "missing layer1.0.bn2.running_var (3,)",
    "missing conv1.weight (4, 3, 3, 3)",
    "unexpected surprise.weight (2, 3)",
    "linear.weight: shape (10, 5), needed (10, 8)",
    "linear.bias: type int64, needed is floating point",
    "layer2.0.conv1.weight: 1 values are not finite",
    "layer3.0.bn1.weight: 2 values are not finite",
  ):
    assert part in message


def test_float_checkpoint_is_not_an_8_bit_net(rng):
  module, _ = _NETS["int8_cifar"]
  _, net = _random(rng, "float_cifar")
  state = interop.to_torch_state_dict(net)
  with pytest.raises(errors.InputError, match="missing conv1.max_abs"):
    interop.from_torch_state_dict(state, module)


def test_files_of_others(rng, tmp_path):
  """NumPy's, and safetensors of another program."""
  safetensors = pytest.importorskip("safetensors.numpy")
  for dtype in (np.float32, np.float16, jnp.bfloat16):
    module, net = _random(rng, "binary_digits", dtype)
    state = interop.to_torch_state_dict(net)
    state = {k: np.ascontiguousarray(v) for k, v in state.items()}
    path = tmp_path / "net.safetensors"
    safetensors.save_file(state, path)
    _assert_equal(interop.from_torch_state_dict(str(path), module), net)
    path = tmp_path / "net.npz"
    np.savez(path, **state)
    _assert_equal(interop.from_torch_state_dict(path, module), net)
    assert interop.load_state_dict(path)["conv1.weight"].dtype == dtype


def test_narrow_floats_are_computed_as_float32(rng):
  """1 + 2^-10 of float16 is the float32 of that value, and so are its sums."""
  module, net = _random(rng, "binary_digits", np.float16)
  state = interop.to_torch_state_dict(net)
  state["bn1.bias"] = np.array([1 + 2**-10, 2**-24, 65504, -1], np.float16)
  got = interop.from_torch_state_dict(state, module)["params"]["bn_stem"]
  assert got["bias"].dtype == np.float32
  assert got["bias"].tolist() == [1.0009765625, 2**-24, 65504, -1]
  assert (got["bias"] + got["bias"])[2] == 131008  # float16: infinite


def test_only_floating_point_is_imported(rng):
  module, net = _random(rng, "binary_digits")
  for value in (1j, 1, True):
    state = interop.to_torch_state_dict(net)
    state["bn1.bias"] = np.full(4, value)
    kind = state["bn1.bias"].dtype
    match = f"1 entries .*: bn1.bias: type {kind}, needed is floating point$"
    with pytest.raises(errors.InputError, match=match):
      interop.from_torch_state_dict(state, module)

  class Quantized:
    """Does what PyTorch's tensors of other types do."""

    dtype = "torch.qint8"

    def detach(self):
      return self

    cpu = detach

    def __array__(self, *_, **__):
      raise TypeError("Got unsupported ScalarType QInt8")

  state["bn1.bias"] = Quantized()
  match = "^bn1.bias: type torch.qint8, needed is floating point$"
  with pytest.raises(errors.InputError, match=match):
    interop.from_torch_state_dict(state, module)


@pytest.mark.parametrize("suffix", [".th", ".t7", ".pt", ".pth"])
def test_pytorch_files(rng, tmp_path, suffix):
  torch = pytest.importorskip("torch")
  module, net = _random(rng, "float_r18")
  state = interop.to_torch_state_dict(net)
  tensors = {
    f"module.{k}": torch.nn.Parameter(torch.tensor(v)) for k, v in state.items()
  }
  path = tmp_path / f"net{suffix}"
  for wrapped in (
    tensors,
    {"state_dict": tensors, "epoch": 3},
    {"model": {"state_dict": tensors}},
  ):
    torch.save(wrapped, path)
    _assert_equal(interop.from_torch_state_dict(path, module), net)
  _assert_equal(interop.from_torch_state_dict(tensors, module), net)
  narrow = {k: v.detach().to(torch.float16) for k, v in tensors.items()}
  torch.save(narrow, path)
  stored = traverse_util.flatten_dict(net)
  stored = {k: v.astype(np.float16) for k, v in stored.items()}
  _assert_equal(
    interop.from_torch_state_dict(path, module),
    traverse_util.unflatten_dict(stored),
  )
  half = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
  torch.save({"net": {"x": half}}, path)
  got = interop.load_state_dict(path)["x"]
  assert got.dtype == jnp.bfloat16 and got.tolist() == [1.5, -2.0]
  torch.save({"x": half[:1].expand(10**7, 10**6)}, path)
  assert interop.load_state_dict(path)["x"][-1, -1] == 1.5
  torch.save({"state_dict": torch.nn.Linear(2, 2)}, path)
  with pytest.raises(errors.InputError, match=f"can't be read as {suffix}"):
    interop.load_state_dict(path)


def test_pytorch_files_need_pytorch(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  path = tmp_path / "net.pt"
  path.write_bytes(b"whatever")
  with pytest.raises(errors.InputError, match="needs the package torch: inst"):
    interop.load_state_dict(path)


class _Attack:
  """Makes a file when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (str(self.path), "w")


def test_pytorch_files_run_nothing(tmp_path, monkeypatch):
  """Of before 2.6, whose `weights_only` could be got round, none is opened."""
  made, path = tmp_path / "made", tmp_path / "net.pt"
  path.write_bytes(pickle.dumps({"conv1.weight": _Attack(made)}))
  with monkeypatch.context() as patch:
    old = types.SimpleNamespace(
      __version__="2.5.1+cpu", load=lambda *_, **__: made.touch()
    )
    patch.setitem(sys.modules, "torch", old)
    match = r"net.pt: got PyTorch 2.5.1\+cpu, needed is 2.6 or newer"
    with pytest.raises(errors.InputError, match=match):
      interop.load_state_dict(path)
  assert not made.exists()
  torch = pytest.importorskip("torch", reason="needs hawis_jax[torch]")
  for legacy in (False, True):  # neither a zip nor a stream of pickles
    torch.save(
      {"conv1.weight": _Attack(made)},
      path,
      _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(errors.InputError, match="can't be read as .pt: "):
      interop.load_state_dict(path)
  assert not made.exists()


def _npz(path, *members, compression=zipfile.ZIP_DEFLATED):
  with zipfile.ZipFile(path, "w", compression) as archive:
    for number, content in enumerate(members):
      archive.writestr(f"{number}.npy", content)


def _npy_header(shape, descr="<f4"):
  file = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    file, {"descr": descr, "fortran_order": False, "shape": shape}
  )
  return file.getvalue()


def _bomb(path):
  """One member, which all entries of the directory point at."""
  _npz(path, _npy_header((8 << 20,)) + bytes(32 << 20))
  content = path.read_bytes()
  end = content.rindex(b"PK\x05\x06")
  start = content.rindex(b"PK\x01\x02", 0, end)
  entry, tail = content[start:end], bytearray(content[end:])
  tail[8:12] = struct.pack("<HH", 200, 200)
  tail[12:16] = struct.pack("<I", 200 * len(entry))
  path.write_bytes(content[:start] + 200 * entry + tail)


@pytest.mark.parametrize(
  "make, match",
  [
    (lambda path: _npz(path, _npy_header((10**12,))), r"0.npy: got shape \(10"),
    (lambda path: _npz(path, _npy_header((1,), "V2147483647")), "0.npy: got"),
    (lambda path: _npz(path, _npy_header((10**12,), "|S0")), "0.npy: got"),
    (
      lambda path: _npz(path, bytes(64 << 20), compression=zipfile.ZIP_LZMA),
      "got arrays of 67,108,864 bytes, allowed for a file of its size are",
    ),
    (_bomb, "got arrays of 6,710,912,000 bytes"),
  ],
  ids=["elements", "bytes", "of nothing", "lzma", "overlapping"],
)
def test_files_that_hold_less_than_they_say(tmp_path, make, match):
  """Refused before memory is taken for it, PyTorch's as well."""
  for suffix in (".npz", ".pt")[: 1 if "0.npy" in match else 2]:
    path = tmp_path / f"net{suffix}"
    make(path)
    with pytest.raises(errors.InputError, match=match) as caught:
      interop.load_state_dict(path)
    assert str(path) in str(caught.value)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_two_arrays_have(tmp_path):
  path = tmp_path / "net.npz"
  with zipfile.ZipFile(path, "w") as archive:
    for _ in range(2):
      archive.writestr("a.npy", _npy_header((0,)))
  with pytest.raises(errors.InputError, match="got 'a.npy' twice"):
    interop.load_state_dict(path)


def test_files_larger_than_any_net(tmp_path):
  """Sparse ones take no room on a disk."""
  for suffix in (".safetensors", ".pt", ".npz"):
    path = tmp_path / f"net{suffix}"
    path.touch()
    os.truncate(path, (16 << 30) + 1)
    with pytest.raises(errors.InputError, match="allowed .* 17,179,869,184$"):
      interop.load_state_dict(path)


def _pickled(path):
  with path.open("wb") as file:
    np.savez(file, x=np.array([{}], dtype=object))


def _cut(path):
  np.savez(path, x=np.zeros(1000))
  path.write_bytes(path.read_bytes()[:-300])


def _one_array(path):
  with path.open("wb") as file:
    np.save(file, np.zeros(3))


def test_damaged_and_unfit_files(tmp_path):
  pytest.importorskip("safetensors")
  empty, words, zeros = (
    lambda path, content=content: path.write_bytes(content)
    for content in (b"", b"no checkpoint", b"\0" * 100)
  )
  for suffix, kinds in (
    (".safetensors", (empty, words, zeros)),
    (".npz", (empty, words, zeros, _pickled, _cut, _one_array)),
  ):
    path = tmp_path / f"net{suffix}"
    match = re.escape(f"{path}: can't be read as {suffix}")
    for damage in kinds:
      damage(path)
      with pytest.raises(errors.InputError, match=match) as caught:
        interop.load_state_dict(path)
      assert "\n" not in str(caught.value)


def test_no_such_files(tmp_path):
  with pytest.raises(errors.InputError, match="x.npz: no such file"):
    interop.load_state_dict(tmp_path / "x.npz")
  with pytest.raises(errors.InputError, match="got suffix '.h5', allowed are"):
    interop.load_state_dict(tmp_path / "x.h5")
