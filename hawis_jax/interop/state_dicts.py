"""PyTorch state dicts: published weights in, ours out.

A published name is that of the PyTorch code a network comes from: the HAWIS
code for the binary nets, torchvision for the ImageNet reference nets,
akamaster's pytorch_resnet_cifar10 for the CIFAR ones. A published layout is
PyTorch's: `[C_out, C_in, k, k]`, `[C_out, C_in]`, and `[classes, C * H * W]`
for a linear layer on a whole map.
"""

from collections.abc import Mapping
import os
import re
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors

from hawis_jax import errors
from hawis_jax.interop import array_files
from hawis_jax.networks import net_variables

# What a published code wraps its model or its state dict in.
_PREFIX = re.compile(r"((module|_orig_mod)\.)*")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_SUFFIXES = (".npz", ".safetensors", ".th", ".t7", ".pt", ".pth")
_LEAST_TORCH = (2, 6)  # before it, `weights_only` could be got round

_FIELDS = {
  "kernel": "weight",
  "scale": "weight",
  "mean": "running_mean",
  "var": "running_var",
}
_SCOPES = {
  "stem": "conv1",
  "bn_stem": "bn1",
  "bn_head": "bn2",
  "stem_conv1": "conv1_1",
  "stem_skip1": "conv1_1_r",
  "bn_stem1": "bn1_1",
  "stem_conv2": "conv1_2",
  "stem_skip2": "conv1_2_r",
  "bn_stem2": "bn1_2",
  "skip": "downsample.0",
  "bn_skip": "downsample.1",
}
_STEMS = ("conv1.weight", "conv1_1.weight")
_BLOCK = re.compile(r"stage(\d+)_block(\d+)")  # of a group of blocks


def load_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Reads the arrays of a state dict's file, whatever it is wrapped in.

  Args:
    path: .npz, .safetensors, or a PyTorch file (.th, .t7, .pt, .pth), of which
      only tensors are unpickled.

  Returns:
    {name as in the file: array of the file's type}.

  Raises:
    InputError: the file is missing, damaged, of another kind, or its package is
      not installed.
  """
  path = array_files.checked_path(path, _SUFFIXES)
  with array_files.read_errors(path):
    state = _read(path)
    while inner := _unwrapped(state):
      state = inner
    if not isinstance(state, Mapping):
      raise TypeError(f"holds a {type(state).__name__}, not a state dict")
    return {str(name): _as_array(name, value) for name, value in state.items()}


def _read(path):
  if path.suffix == ".npz":
    with array_files.opened(path) as arrays:
      return dict(arrays)
  if path.suffix == ".safetensors":
    return safetensors.load_file(path)
  import torch  # optional

  version = tuple(map(int, re.findall(r"\d+", str(torch.__version__))[:2]))
  if version < _LEAST_TORCH:
    raise errors.InputError(
      f"{path}: got PyTorch {torch.__version__}, needed is 2.6 or newer: older "
      "ones may run what is in the file; install hawis_jax[torch], or convert "
      "the file to .npz"
    )
  return torch.load(path, map_location="cpu", weights_only=True)


def _unwrapped(state):
  """Returns the mapping under a wrapper's key; None where there is none."""
  if isinstance(state, Mapping):
    for key in _WRAPPERS:
      if isinstance(state.get(key), Mapping):
        return state[key]
  return None


def _as_array(name, value):
  if hasattr(value, "detach"):  # a tensor of PyTorch
    value = value.detach().cpu()
    if str(value.dtype) == "torch.bfloat16":  # which .numpy() refuses
      import torch

      # Without a copy: a tensor may repeat few values to any size.
      return value.view(torch.int16).numpy().view(jnp.bfloat16)
  try:
    array = np.asarray(value)
  except (TypeError, ValueError, RuntimeError) as error:
    kind = getattr(value, "dtype", type(value).__name__)
    raise errors.InputError(
      f"{name}: type {kind}, needed is floating point"
    ) from error
  # What NumPy makes of bfloat16 in its own files.
  return array.view(jnp.bfloat16) if array.dtype == np.dtype("V2") else array


def from_torch_state_dict(
  state: Mapping[str, Any] | str | os.PathLike, module: nn.Module
) -> dict:
  """Converts a published checkpoint to our variables.

  Of an 8-bit reference net, import the float one and then `quantize` it: only
  its own exports hold the activations' ranges.

  >>> import hawis_jax as hx
  >>> import jax
  >>> net = hx.cifar_resnet(8, (4, 4, 4, 6, 6, 8, 8), num_classes=10, levels=8)
  >>> make = jax.jit(lambda key: hx.init_variables(net, key, (8, 8, 1)))
  >>> published = to_torch_state_dict(make(jax.random.key(0)))
  >>> published["layer1.0.conv1.weight"].shape  # or torch.load("published.th")
  (4, 4, 3, 3)
  >>> variables = hx.from_torch_state_dict(published, net)
  >>> variables["params"]["stage1_block0"]["conv1"]["kernel"].shape
  (3, 3, 4, 4)

  The names are those of the HAWIS code (ASP-DAC 2022), of torchvision, and of
  akamaster's pytorch_resnet_cifar10.

  Args:
    state: {published name: array or tensor in the published layout}, with or
      without "module." and "_orig_mod." in front, or a file of one. Teacher
      parameters and "num_batches_tracked" are ignored.
    module: the network, at the checkpoint's own widths.

  Returns:
    `{"params": ..., "batch_stats": ...}`, float32 where the arrays have fewer
    bits, for a net computes in what its variables have; else as they are.

  Raises:
    InputError: lists every missing, unexpected, misshapen and not finite entry
      and every one that is not of floating point by its published name; or the
      file can't be read.
  """
  source = "state dict"
  if isinstance(state, str | os.PathLike):
    source, state = state, load_state_dict(state)
  found, problems = _shorten(state)
  expected = _expected(found, module)
  for name, array in found.items():
    shape = _published_shape(*expected[name]) if name in expected else None
    problems += _misfits(name, array, shape)
  problems += [
    f"missing {name} {_published_shape(*expected[name])}"
    for name in expected.keys() - found
  ]
  if problems:
    raise errors.InputError(
      f"{source}: {len(problems)} entries do not fit the network (names and "
      f"shapes as published): {'; '.join(sorted(problems))}"
    )
  flat = {
    path: _to_ours(_widened(found[name]), path, shape)
    for name, (path, shape) in expected.items()
  }
  return traverse_util.unflatten_dict(flat)


def to_torch_state_dict(variables: Mapping) -> dict[str, np.ndarray]:
  """Returns all `params` and `batch_stats` under published names and layouts.

  Only one of the two collections of `variables` will do.
  """
  flat = {
    path: np.asarray(leaf)
    for path, leaf in traverse_util.flatten_dict(dict(variables)).items()
    if path[0] in ("params", "batch_stats")
  }
  names = _published_names(flat)
  return {names[path]: _to_published(leaf, path) for path, leaf in flat.items()}


def export_weights(path: str | os.PathLike, variables: Mapping) -> None:
  """Writes a net's `params` and `batch_stats` under published PyTorch names.

  Args:
    path: .safetensors, for `from_torch_state_dict`; replaced if it is there.
    variables: of any network.

  Raises:
    InputError: another suffix; no variables; the file can't be written.
  """
  path = array_files.checked_path(path, (".safetensors",))
  state = to_torch_state_dict(variables)
  if not state:
    raise errors.InputError(
      f"variables: got {', '.join(variables) or 'none'}, needed are params or "
      "batch_stats"
    )
  # Not ascontiguousarray, which makes a vector of a scalar.
  state = {name: np.asarray(x, order="C") for name, x in state.items()}
  # Readers of PyTorch's ask for this mark.
  data = safetensors.save(state, {"format": "pt"})
  with array_files.replaced(path) as partial:
    partial.write_bytes(data)


def _shorten(state):
  """Returns ({name without prefixes: array}, [problem]) of what is ours."""
  found, problems = {}, []
  for name, value in state.items():
    short = _PREFIX.sub("", name, count=1)
    if short.startswith("teacher") or short.endswith("num_batches_tracked"):
      continue
    if short in found:
      problems.append(f"{short} twice")
    found[short] = _as_array(name, value)
  return found, problems


def _misfits(name, array, shape):
  """Lists problems of an entry of needed shape `shape`; None: not needed."""
  if shape is None:
    return [f"unexpected {name} {array.shape}"]
  if array.shape != shape:
    return [f"{name}: shape {array.shape}, needed {shape}"]
  if not jnp.issubdtype(array.dtype, jnp.floating):
    return [f"{name}: type {array.dtype}, needed is floating point"]
  if not np.isfinite(array).all():
    return [f"{name}: {np.sum(~np.isfinite(array))} values are not finite"]
  return []


def _widened(array):
  """Returns float16, bfloat16 and narrower ones as float32, which is exact."""
  return array.astype(np.float32) if array.dtype.itemsize < 4 else array


def _expected(found, module):
  """Returns {published name: (our path, our shape)} of a network's variables.

  Images have the channels that the found stem reads, else 3; their size does
  not matter but to networks that name it.
  """
  stems = [found[name] for name in _STEMS if name in found]
  planes = stems[0].shape[1] if stems and stems[0].ndim == 4 else 0
  channels = planes // getattr(module, "levels", 1) or 3
  size = getattr(module, "image_size", 32)
  shapes = net_variables.shapes(module, (size, size, channels))
  flat = traverse_util.flatten_dict(shapes)
  names = _published_names(flat)
  return {names[path]: (path, leaf.shape) for path, leaf in flat.items()}


def _published_names(paths):
  """Returns {our path: published name}; an optional part keeps our name.

  The published ImageNet nets, those of four groups, call their head "fc".
  """
  four_groups = any("stage4_block0" in path for path in paths)
  scopes = {**_SCOPES, "head": "fc" if four_groups else "linear"}
  names = {}
  for path in paths:
    _, *scope, field = path
    scope = [scopes.get(part, part) for part in scope]
    name = ".".join([*scope, _FIELDS.get(field, field)])
    names[path] = _BLOCK.sub(r"layer\1.\2", name)
  return names


def _published_shape(path, shape):
  if path[-1] != "kernel":
    return shape
  *taps, c_in, c_out = shape
  if "head" in path:
    return (c_out, c_in * int(np.prod(taps)))
  return (c_out, c_in, *taps)


def _to_published(array, path):
  """Reorders a kernel `[k, k, C_in, C_out]` -> `[C_out, C_in, k, k]`."""
  if path[-1] != "kernel":
    return array
  *taps, c_in, c_out = range(array.ndim)
  reordered = array.transpose(c_out, c_in, *taps)
  return reordered.reshape(_published_shape(path, array.shape))


def _to_ours(array, path, shape):
  """Reorders a published kernel to `shape`, ours."""
  if path[-1] != "kernel":
    return array
  *taps, c_in, c_out = shape
  array = array.reshape(c_out, c_in, *taps)
  return array.transpose(*range(2, array.ndim), 1, 0)
