"""A user's own Flax net, of Linen or NNX, on chips (docs/own_net.md).

Chips hold the kernels of the chosen layers. The net's own code computes the
rest, with the kernels that a chip amounts to in the place of its own, so that
strides, padding, biases and normalisation are the net's.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import inspect
from typing import Any

import chex
import flax
from flax import linen as nn
from flax import nnx
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax.arithmetic import binary
from hawis_jax.arithmetic import integer
from hawis_jax.crossbar import cells
from hawis_jax.networks import own_layers

# {weights: their bits on a crossbar}.
WEIGHTS = {"binary": 1, "int8": 8, "analog": 0}
_SCALES = "channel"
# Arguments of a net's call that say whether it is trained, and whether they
# are true when it is.
_FLAGS = {
  "train": True,
  "training": True,
  "is_training": True,
  "deterministic": False,
  "use_running_average": False,
}
# Collections that are ours.
_OURS = ("crossbar", "converters", "scales")


def _default_encode(images):
  integers = jnp.issubdtype(images.dtype, jnp.uint8)
  return images.astype(jnp.float32) / 255 if integers else images


# Compared as the object that it is: nets may hold what has no hash, as lists.
@dataclasses.dataclass(frozen=True, eq=False)
class AnyFlax:
  """A net of `any_flax`.

  Attributes:
    module: the user's, `nn.Module` or `nnx.Module`.
    weights: of the chosen layers.
    layers: patterns of their paths; None: all with a kernel.
    encode: of images, to what the module is called with.
  """

  module: nn.Module | nnx.Module
  weights: str
  layers: tuple[str, ...] | None
  encode: Callable[[chex.Array], chex.Array]
  # {shapes of the parameters: {path: chosen layer}}, found when it is called.
  _chosen: dict = dataclasses.field(default_factory=dict, repr=False)

  weight_scales = _SCALES

  @property
  def weight_bits(self) -> int:
    """Bits of a weight on chips; 0: analog."""
    return WEIGHTS[self.weights]

  @functools.cached_property
  def _parts(self):
    """Graph, parameters, statistics and the rest of an NNX model."""
    return nnx.split(self.module, nnx.Param, nnx.BatchStat, ...)

  @property
  def variables(self) -> dict:
    """`params` and `batch_stats` of an NNX model, as `any_flax` got them.

    Raises:
      InputError: of a Linen module, whose variables are the user's.
    """
    if isinstance(self.module, nn.Module):
      raise errors.InputError(
        "variables: a Linen module has none of its own; use those of its init"
      )
    _, params, stats, _ = self._parts
    return {
      "params": _to_dict(params),
      "batch_stats": _to_dict(stats),
    }

  def apply(
    self,
    variables: Mapping[str, Any],
    inputs: chex.Array,
    widths: None = None,
    *,
    train: bool = False,
    mutable: bool | str | Sequence[str] = False,
    rngs: Any = None,
    **kwargs: Any,
  ) -> Any:
    """Returns what the net returns with its chosen weights as chips hold them.

    Args:
      variables: of the net; with `crossbar`, of `hx.program`, weights are those
        of that chip. Else they are quantised, the gradient straight through.
      inputs: what the net is called with, e.g. of `encode`.
      widths: None.
      train: the value of `train`, `training`, `is_training`, and the opposite
        of `deterministic` and `use_running_average`, if the net's call has any.
      mutable: collections to be returned too, as of `nn.Module.apply`.
      rngs: keys by name, for dropout.
      **kwargs: further arguments of the net's call.

    Raises:
      InputError: a layer that chips can't hold, see `any_flax`.
    """
    del widths
    variables = plain(variables)
    others = {k: v for k, v in variables.items() if k not in _OURS}
    run = functools.partial(
      self._run, inputs, train=train, mutable=mutable, rngs=rngs, kwargs=kwargs
    )
    params = others.pop("params")
    self._find(params, lambda params: run({**others, "params": params}))
    held = self._held(params, variables.get("crossbar", {}))
    # Accelerators round operands to fewer bits: conductances don't survive it.
    with jax.default_matmul_precision("highest"):
      return run({**others, "params": held})

  def was_called(self, params: Mapping) -> bool:
    """Returns whether the net was called, by `apply`, with such parameters."""
    return _shapes(plain(params)) in self._chosen

  def on_chips(self, params: Mapping) -> dict:
    """Returns the kernels that chips hold, nested as `params` are.

    They are matrices `[rows, columns]`, or `[*taps, C_in, C_out]` of
    convolutions: what `hx.program` and `hx.conductances` take. The net has been
    called before, by `apply` or by what evaluates it.

    Raises:
      InputError: it has not.
    """
    params = plain(params)
    chosen = self._chosen.get(_shapes(params))
    if chosen is None:
      raise errors.InputError(
        "any_flax: got a net that was never called with these parameters, "
        "needed is a call of its apply"
      )
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict(
      {
        (*path, "kernel"): layer.to_matrix(flat[*path, "kernel"])
        for path, layer in chosen.items()
      }
    )

  def classes(self, variables: Mapping[str, Any], images: Any) -> int:
    """Returns the number of logits for images `[N, ...]`; at no cost.

    Raises:
      InputError: variables or images that don't fit the net; outputs that are
        no logits; a layer that chips can't hold.
    """
    sample = jax.ShapeDtypeStruct((2, *images.shape[1:]), images.dtype)
    try:
      logits = jax.eval_shape(
        lambda variables, x: self.apply(variables, self.encode(x)),
        plain(variables),
        sample,
      )
    except errors.InputError:
      raise
    except (flax.errors.FlaxError, TypeError, ValueError) as error:
      raise errors.InputError(
        f"variables, images: got what doesn't fit the net: "
        f"{' '.join(str(error).split())}"
      ) from error
    shape = getattr(logits, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != 2:
      raise errors.InputError(
        f"any_flax: got a net whose output for 2 images is {logits}, needed "
        "are logits [2, classes]"
      )
    return shape[1]

  def _run(self, inputs, variables, train, mutable, rngs, kwargs):
    call = inspect.signature(self.module.__call__).parameters
    flags = {k: v == train for k, v in _FLAGS.items() if k in call} | kwargs
    if isinstance(self.module, nn.Module):
      return self.module.apply(
        variables, inputs, mutable=mutable, rngs=rngs, **flags
      )
    graph, params, stats, rest = self._parts
    model = nnx.merge(
      graph,
      _from_dict(params, variables["params"]),
      _from_dict(stats, variables.get("batch_stats", {})),
      jax.tree.map(lambda leaf: leaf, rest),  # others: a call changes them
    )
    (model.train if train else model.eval)()
    streams = nnx.to_flat_state(nnx.state(model, nnx.RngKey))
    if rngs:
      # As in Linen: a stream without a key of its own follows from the first.
      first = next(iter(rngs.values()))
      tags = sorted({key.tag for _, key in streams})
      keys = {x: jax.random.fold_in(first, n) for n, x in enumerate(tags)}
      nnx.reseed(model, **keys | {k: v for k, v in rngs.items() if k in tags})
    elif train and streams:
      raise errors.InputError(
        "rngs: got None in training a model with random layers, needed are "
        "keys, as {'dropout': key}: else each step would draw the same"
      )
    out = model(inputs, **flags)
    if mutable is False:
      return out
    if not flax.core.scope.in_filter(mutable, "batch_stats"):
      return out, {}
    return out, {"batch_stats": _to_dict(nnx.state(model, nnx.BatchStat))}

  def _find(self, params, run):
    """Finds which layers the net calls, once, and checks those chosen."""
    known = _shapes(params)
    if known in self._chosen:
      return
    kernels = cells.kernels_of(params)
    if not kernels:
      raise errors.InputError(
        "variables: got params without a kernel, needed is a layer of "
        f"{own_layers.KNOWN}"
      )
    if isinstance(self.module, nn.Module):
      _, found = own_layers.of_linen(self.module, params, run)
    else:
      found = own_layers.of_nnx(self.module)
    chosen = cells.matching(kernels, self.layers)
    computed = own_layers.computed_of(params, run)
    for path in chosen:
      name = "/".join(path) or type(self.module).__name__
      if path not in found:
        raise errors.InputError(
          f"layers: got {name}, whose kernel the net never reads in its "
          "forward pass; choose others by their paths"
        )
      if found[path].refusal:
        raise errors.InputError(
          f"layers: got {name}, {found[path].refusal}; choose others by their "
          "paths, this one is then computed digitally"
        )
      if (*path, "kernel") in computed:
        raise errors.InputError(
          f"layers: got {name}, of whose kernel the net computes other numbers "
          f"(by {computed[*path, 'kernel']}); choose others by their paths"
        )
    self._chosen[known] = {path: found[path] for path in chosen}

  def _held(self, params, chip):
    """Returns the parameters, kernels as a chip, or no chip, holds them."""
    flat = traverse_util.flatten_dict(params)
    chip = traverse_util.flatten_dict(chip)
    bits = self.weight_bits
    for path, layer in self._chosen[_shapes(params)].items():
      kernel = flat[*path, "kernel"]
      matrix = layer.to_matrix(kernel)
      if bits == 1:
        step = binary.weight_scale(matrix, per_channel=True)
        step = step.reshape((1,) * (matrix.ndim - 1) + (-1,))
      else:
        step = integer.weight_step(matrix, bits, _SCALES)
      if (*path, "weight") in chip:
        weights = chip[*path, "weight"]
      elif any(name[: len(path)] == path for name in chip):
        raise errors.InputError(
          f"variables: got a chip whose {'/'.join(path)} is read tile by tile, "
          "allowed with a net of any_flax is one without converters, noise a "
          "read and gated or non-linear cells on resistive lines: its inputs "
          "are no bits"
        )
      else:
        weights = cells.kernel_integers(matrix, bits, _SCALES)
      if bits == 1:
        # A weight's gradient is that of the kernel, as of the other kinds.
        weights = binary.divide_gradient(weights, step)
      flat[*path, "kernel"] = layer.to_kernel(weights * step, kernel.shape)
    return traverse_util.unflatten_dict(flat)


def any_flax(
  module: nn.Module | nnx.Module,
  weights: str = "int8",
  *,
  layers: str | Sequence[str] | None = None,
  encode: Callable[[chex.Array], chex.Array] = _default_encode,
) -> AnyFlax:
  """Returns a net of the user's own, to be put on chips.

  `hx.evaluate_chips` and `hx.train_on_chips` take it in the place of a net of
  ours. Chips hold the kernels of Flax's Dense, DenseGeneral, Conv and Einsum
  (Linen) or Linear, LinearGeneral, Conv and Einsum (NNX), alone or within other
  layers, as attention. All else is digital, in float32: biases, normalisation,
  activations, embeddings, and kernels that are not chosen. Inputs of the
  crossbars are not quantised: converters are ideal, so devices with `adc_bits`
  or noise a read are refused.

  >>> import hawis_jax as hx, jax, numpy as np
  >>> from flax import linen as nn
  >>> mlp = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(10)])
  >>> flat = lambda images: images.reshape(len(images), -1) / 255
  >>> net = hx.any_flax(mlp, weights="int8", encode=flat)
  >>> images, labels = np.zeros((6, 8, 8, 1), np.uint8), np.arange(6)
  >>> variables = mlp.init(jax.random.key(0), flat(images))
  >>> device = hx.Device(stuck_off=0.1, variation=0.2)
  >>> key = jax.random.key(1)
  >>> hx.evaluate_chips(
  ...   key, net, variables, images, labels, device, num_chips=4
  ... ).shape
  (4,)

  Args:
    module: returns logits `[B, classes]`. It is called with `train`,
      `training` or `is_training` False, and `deterministic` or
      `use_running_average` True, where its call has such an argument; an NNX
      model as `model.eval()`. It is copied, trained as it is, and its variables
      are `any_flax(model).variables`.
    weights: of the chosen layers. "binary": their signs, on one pair of cells,
      times the digital mean magnitude of an output channel (XNOR-Net,
      Rastegari et al., ECCV 2016); "int8": integers from -127 to 127 times a
      digital scale an output channel; "analog": conductances proportional to
      the weights, which are not rounded.
    layers: patterns of paths in `params`, as "Dense_*" or ("encoder/*",
      "head"), of the layers that chips hold; None: all that have a kernel.
    encode: images `[B, ...]` -> what the module is called with; by default
      uint8 are divided by 255, others are as they are.

  Raises:
    InputError: no module, or other weights. When it is used: a pattern that no
      layer matches; a chosen layer that the net never reads, or whose product
      is not that of one matrix (groups of a convolution, layers within
      `nn.scan`, classes of the user's own).
  """
  if not isinstance(module, nn.Module | nnx.Module):
    kind = module if inspect.isclass(module) else type(module)
    raise errors.InputError(
      f"any_flax: got {'the class' if kind is module else 'a'} "
      f"{kind.__name__}, needed is a module of flax.linen or flax.nnx"
    )
  if weights not in WEIGHTS:
    raise errors.InputError(
      f"weights: got {weights!r}, allowed are {', '.join(WEIGHTS)}"
    )
  if layers is not None:
    layers = (layers,) if isinstance(layers, str) else tuple(layers)
  if isinstance(module, nnx.Module):
    module = nnx.clone(module)  # the user may train it on
  return AnyFlax(module, weights, layers, encode)


def kernels(module: nn.Module | AnyFlax, params: Mapping) -> Mapping:
  """Returns what of any net's parameters chips hold."""
  return module.on_chips(params) if isinstance(module, AnyFlax) else params


def check_net(module: Any) -> None:
  """Checks that a net is one that chips can be made of.

  Raises:
    InputError: it is a module of the user's that nothing was said of.
  """
  if not isinstance(module, AnyFlax) and not hasattr(module, "weight_bits"):
    raise errors.InputError(
      f"module: got a {type(module).__name__}, needed is a net of ours or, of "
      "your own, hx.any_flax(module)"
    )


def check_device(device: crossbar.Device) -> None:
  """Checks that a device can read a net of `any_flax`.

  Raises:
    InputError: it has effects that are modelled for inputs of bits alone.
  """
  present = crossbar.bit_effects(device)
  if present:
    raise errors.InputError(
      f"device: got one with {', '.join(present)}, allowed with a net of "
      "any_flax is 0 of each: its inputs are no bits"
    )


def plain(variables: Mapping) -> dict:
  """Returns nested dicts of arrays, of frozen or partitioned ones too."""
  return nn.meta.unbox(flax.core.unfreeze(variables))


def _shapes(params):
  flat = traverse_util.flatten_dict(params)
  return tuple((path, np.shape(flat[path])) for path in sorted(flat))


def _to_dict(state):
  """Returns a state of NNX as nested dicts, whose names are strings."""
  return traverse_util.unflatten_dict(
    {
      tuple(map(str, path)): variable[...]
      for path, variable in nnx.to_flat_state(state)
    }
  )


def _from_dict(state, values):
  """Returns a state with other values, of `_to_dict`."""
  flat = traverse_util.flatten_dict(values)
  return nnx.from_flat_state(
    [
      (path, variable.replace(flat[tuple(map(str, path))]))
      for path, variable in nnx.to_flat_state(state)
    ]
  )
