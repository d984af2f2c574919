"""Other programs' formats: published PyTorch state dicts in."""

import re

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import errors

_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.(\w+)\.(\w+)")
_NORM_FIELDS = {
  "weight": ("params", "scale"),
  "bias": ("params", "bias"),
  "running_mean": ("batch_stats", "mean"),
  "running_var": ("batch_stats", "var"),
}
_TOP_LEVEL = {
  "conv1": "stem",
  "bn1": "bn_stem",
  "bn2": "bn_head",
  "linear": "head",
}


def from_torch_state_dict(
  state: dict[str, np.ndarray], module: nn.Module
) -> dict:
  """Converts a published HAWIS CIFAR ResNet checkpoint to our variables.

  Args:
    state: published names, with or without "module.", e.g.
      "module.layer1.0.conv1.weight" -> `[C_out, C_in, k, k]`. Teacher
      parameters and "num_batches_tracked" are ignored.
    module: the network, at the checkpoint's own widths.

  Returns:
    `{"params": ..., "batch_stats": ...}` with the arrays' own dtypes.

  Raises:
    InputError: lists every missing, unexpected and misshapen entry.
  """
  found, unexpected = {}, []
  for name, value in state.items():
    short = name.removeprefix("module.")
    if short.startswith("teacher") or short.endswith("num_batches_tracked"):
      continue
    try:
      found |= rename({short: np.asarray(value)})
    except KeyError:
      unexpected.append(name)
  expected = _expected_shapes(found, module)
  problems = [f"unexpected {name}" for name in unexpected]
  problems += [f"unexpected {'.'.join(p)}" for p in found.keys() - expected]
  problems += [f"missing {'.'.join(p)}" for p in expected.keys() - found]
  problems += [
    f"{'.'.join(path)}: shape {found[path].shape}, needed {expected[path]}"
    for path in expected.keys() & found
    if found[path].shape != expected[path]
  ]
  if problems:
    raise errors.InputError(
      f"state dict: {len(problems)} entries do not fit the network: "
      + "; ".join(sorted(problems))
    )
  return traverse_util.unflatten_dict(found)


def rename(state: dict[str, np.ndarray]) -> dict[tuple[str, ...], np.ndarray]:
  """Published names and layouts -> ours: {path: array}.

  Raises:
    KeyError: a name that is not of the published networks.
  """
  renamed = {}
  for name, value in state.items():
    path = _path(name.removeprefix("module."))
    if path is None:
      raise KeyError(name)
    renamed[path] = _layout(value)
  return renamed


def _path(name: str) -> tuple[str, ...] | None:
  """Our path of a published name; None where there is none."""
  if match := _BLOCK.fullmatch(name):
    stage, block, layer, field = match.groups()
    scope = (f"stage{stage}_block{block}", layer)
  else:
    layer, _, field = name.partition(".")
    if layer not in _TOP_LEVEL:
      return None
    scope = (_TOP_LEVEL[layer],)
  if layer.startswith("bn"):
    if field not in _NORM_FIELDS:
      return None
    collection, ours = _NORM_FIELDS[field]
    return (collection, *scope, ours)
  return ("params", *scope, "kernel") if field == "weight" else None


def _layout(value: np.ndarray) -> np.ndarray:
  """`[C_out, C_in, k, k]` -> `[k, k, C_in, C_out]`; a matrix is transposed."""
  if value.ndim == 4:
    return value.transpose(2, 3, 1, 0)
  return value.T


def _expected_shapes(found, module):
  stem = found.get(("params", "stem", "kernel"))
  planes = stem.shape[2] if stem is not None and stem.ndim == 4 else 96
  shapes = jax.eval_shape(
    lambda: module.init(
      jax.random.key(0), jnp.zeros((1, 32, 32, planes)), train=False
    )
  )
  flat = traverse_util.flatten_dict(shapes)
  return {path: leaf.shape for path, leaf in flat.items()}
