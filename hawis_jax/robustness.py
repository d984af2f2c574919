"""Monte Carlo over chips: the accuracy of nets on defective crossbars.

Chip s of a run is the key fold_in(key, s): its result does not depend on the
other chips, on how chips are chunked, or on the other candidates. Noise a read
follows from the image's number, and is drawn tile by tile where any chip that
is scored with it has converters.

Axes: S chips, P candidates (width vectors), N batches, B images, L layers.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import functools
from typing import NamedTuple

import chex
from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import backend
from hawis_jax import crossbar
from hawis_jax import montecarlo
from hawis_jax import variables as variables_lib
from hawis_jax.intervals import cvar
from hawis_jax.intervals import summarize

__all__ = (
  "Batches",
  "Scores",
  "calibrate_converters",
  "cvar",
  "evaluate_chips",
  "ideal_accuracy",
  "score_chips",
  "summarize",
  "unpadded",
)


# Of chips that an accelerator computes at the same time: 256 MB of float32.
_MOST_WEIGHTS = 2**26


class Batches(NamedTuple):
  """Images to evaluate on, the last batch padded.

  Attributes:
    image: uint8 `[N, B, H, W, C]`.
    label: int32 `[N, B]`.
    mask: bool `[N, B]`, False on padding.
  """

  image: chex.Array
  label: chex.Array
  mask: chex.Array


class Scores(NamedTuple):
  """Of every chip and candidate.

  Attributes:
    hits: images classified correctly, int32 `[S, P]`.
    accuracy: their share, `[S, P]`; compiled division may round differently
      in differently batched programs, so exact results divide `hits`.
    cross_entropy: mean over images [nat], `[S, P]`.
  """

  hits: chex.Array
  accuracy: chex.Array
  cross_entropy: chex.Array


def score_chips(
  module: nn.Module,
  variables: dict,
  widths: chex.Array,
  batch_stats: dict,
  batches: Batches,
  chip_keys: chex.Array,
  device: crossbar.Device,
) -> Scores:
  """Scores P candidates of one super-net on S chips; pure, to be jitted.

  Candidates share the chip's weights, so they fold into the batch. Chips are
  looped over on CPU and vmapped elsewhere, as many as memory is likely to hold,
  and are bit planes where they can be, as in `montecarlo`.

  Args:
    module: a binary network.
    variables: its `params`.
    widths: int `[P, L]`.
    batch_stats: of each candidate, leading axis P.
    batches: images to score on.
    chip_keys: `[S]`.
    device: of all chips.
  """
  params = {"params": variables["params"]}
  form = montecarlo.weights_form(device, module.weight_bits)
  num, image_shape = len(widths), batches.image.shape[2:]
  own = jax.vmap(
    lambda widths, norm: variables_lib.with_scales(
      module, {**params, "batch_stats": norm}, image_shape, widths
    )
  )(widths, batch_stats)
  own = {name: own[name] for name in ("batch_stats", "scales")}

  def score_chip(key):
    net = crossbar.program(key, params, device, module.weight_bits, form=form)

    def score_batch(carry, batch):
      first, *sums = carry
      size = batch.label.size
      inputs = module.encode(batch.image)
      noisy = crossbar.for_images(net, first + jnp.arange(size))
      logits = jax.vmap(
        lambda widths, own: module.apply(
          {**noisy, **own}, inputs, widths, train=False
        )
      )(widths, own)
      hit = jnp.argmax(logits, -1) == batch.label[None]
      picked = jnp.take_along_axis(
        jax.nn.log_softmax(logits), batch.label[None, :, None], -1
      )
      mask = batch.mask[None]
      parts = (hit & mask, -picked[..., 0] * mask)
      sums = [s + p.sum(-1) for s, p in zip(sums, parts, strict=True)]
      return (first + size, *sums), None

    zeros = (
      jnp.zeros((), jnp.int32),
      jnp.zeros(num, jnp.int32),
      jnp.zeros(num),
    )
    (_, hits, losses), _ = jax.lax.scan(score_batch, zeros, batches)
    count = batches.mask.sum()
    return Scores(hits, hits / count, losses / count)

  together = 0
  if backend.platform() != "cpu":
    together = _MOST_WEIGHTS // sum(x.size for x in jax.tree.leaves(params))
  if len(chip_keys) <= together:
    return jax.vmap(score_chip)(chip_keys)
  size = together if together > 1 else None
  return jax.lax.map(score_chip, chip_keys, batch_size=size)


def evaluate_chips(
  key: chex.PRNGKey,
  module: nn.Module,
  variables: dict,
  batches: Batches,
  device: crossbar.Device,
  num_chips: int,
  *,
  calibration: chex.Array | None = None,
  faults: Mapping[str, chex.Array] | None = None,
  layers: Sequence[str] | None = None,
  limits: montecarlo.Limits = montecarlo.FREE,
  devices: Sequence[jax.Device] | None = None,
) -> np.ndarray:
  """Accuracy of one trained net on `num_chips` chips of a device.

  Nets evaluated with the same key share chips: the defects of the cells that
  both use are the same. A chip's accuracy does not depend, to the bit, on the
  others, on `limits`, on batches or on `devices`.

  Args:
    key: of the run; chip s is fold_in(key, s).
    module: the net.
    variables: its `params` and `batch_stats`; `converters` where the device's
      range is calibrated, from `calibrate_converters`.
    batches: test images.
    device: every chip's device.
    num_chips: S.
    calibration: uint8 `[N, B, H, W, C]`: recalibrate BN on every chip with
      these images ("chip" mode); None: keep `batch_stats` ("fixed" mode).
    faults: measured ones that all chips have, see `crossbar.program`.
    layers: patterns of the layers on chips, see `crossbar.program`; None: all.
    limits: of chips, images and memory a step.
    devices: to run on; None: all.

  Returns:
    float32 `[S]` accuracies.

  Raises:
    InputError: the device can't read the net; a variable is not finite; one
      chip does not fit the memory.
  """
  setting = montecarlo.Setting(
    module,
    variables,
    device,
    faults,
    None if layers is None else tuple(layers),
    calibration,
  )
  image, label = unpadded(batches)
  chunks = montecarlo.classify(
    key,
    setting,
    image,
    label,
    range(num_chips),
    limits=limits,
    devices=devices,
  )
  hits = np.concatenate([chunk.sum(1) for chunk in chunks])
  return hits.astype(np.float32) / np.float32(len(label))


def unpadded(batches: Batches) -> tuple[np.ndarray, np.ndarray]:
  """(images uint8 `[N, H, W, C]`, labels `[N]`) of batches."""
  mask = np.asarray(batches.mask).reshape(-1)
  image, label = (np.asarray(x) for x in (batches.image, batches.label))
  return (
    image.reshape(-1, *image.shape[2:])[mask],
    label.reshape(-1)[mask],
  )


def calibrate_converters(
  module: nn.Module,
  variables: dict,
  images: chex.Array,
  device: crossbar.Device,
) -> dict:
  """Returns `variables` with `converters`: the range of each layer's.

  The defect-free net is read tile by tile; a layer's range is the greatest,
  over its tiles, of `device.adc_percentile` of the magnitude of partial sums.
  The hardware is designed so: all chips have the same ranges.

  Args:
    module: the net.
    variables: its `params` and `batch_stats`.
    images: uint8 `[B, H, W, C]` to calibrate on.
    device: its tiles and how weights lie in them; effects are ignored.
  """
  ideal = dataclasses.replace(
    crossbar.without_effects(device),
    adc_bits=16,  # any: the tiles are read one by one, without the converters
    adc_range="full_scale",
  )
  return {**variables, **_calibrate(module, variables, images, ideal)}


@functools.partial(jax.jit, static_argnums=0)
def _calibrate(module, variables, images, device):
  net = crossbar.program(
    jax.random.key(0), variables, device, module.weight_bits
  )
  flat = traverse_util.flatten_dict(net["crossbar"])
  flat = {path: x for path, x in flat.items() if path[-1] != "converter"}
  percentiles = {
    (*path[:-1], "percentile"): jnp.float32(device.adc_percentile)
    for path in flat
  }
  net = {
    **net,
    "crossbar": traverse_util.unflatten_dict(flat),
    "converters": traverse_util.unflatten_dict(percentiles),
  }
  _, updated = module.apply(
    net, module.encode(images), train=False, mutable=["converters"]
  )
  return updated


def _weights(variables):
  """What chips are programmed with."""
  names = ("params", "converters")
  return {name: variables[name] for name in names if name in variables}


def ideal_accuracy(
  module: nn.Module, variables: dict, batches: Iterable[Batches]
) -> float:
  """Accuracy of one net on a defect-free chip.

  Args:
    module: the net.
    variables: its `params` and `batch_stats`.
    batches: one batch at a time, without the axis N.
  """
  hits, images = 0, 0
  for batch in batches:
    found, count = _hits(module, variables, batch)
    hits, images = hits + int(found), images + int(count)
  return hits / images


@functools.partial(jax.jit, static_argnums=0)
def _hits(module, variables, batch):
  inputs = module.encode(batch.image)
  logits = module.apply(variables, inputs, train=False)
  hits = (logits.argmax(-1) == batch.label) & batch.mask
  return hits.sum(), batch.mask.sum()
