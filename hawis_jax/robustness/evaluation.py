"""Monte Carlo over chips: the accuracy of nets on defective crossbars.

Chip s of a run is the key fold_in(key, s): its result does not depend on the
other chips, on how chips are chunked, or on the other candidates. Noise a read
follows from the image's number, and is drawn tile by tile where any chip that
is scored with it has converters.

Axes: S chips, P candidates (width vectors), N batches, B images, L layers.
"""

from collections.abc import Iterable, Mapping, Sequence
import functools

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import backend
from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax.networks import any_flax
from hawis_jax.robustness import monte_carlo


def evaluate_chips(
  key: chex.PRNGKey,
  module: nn.Module,
  variables: dict,
  images: np.ndarray,
  labels: np.ndarray,
  device: crossbar.Device,
  num_chips: int = 64,
  *,
  calibration: chex.Array | None = None,
  faults: Mapping[str, chex.Array] | None = None,
  layers: Sequence[str] | None = None,
  placing: crossbar.Placing | None = None,
  compensated: bool = False,
  limits: monte_carlo.Limits = monte_carlo.FREE,
  accelerators: Sequence[jax.Device] | None = None,
) -> np.ndarray:
  """Returns the accuracy of one trained net on every chip of a device.

  It is the tolerance test of HAWIS (ASP-DAC 2022): chips are drawn at random,
  and all of them classify the same images. Nets evaluated with the same key
  share chips: the defects of the cells that both use are the same. A chip's
  accuracy does not depend, to the bit, on the others, on `limits` or on
  `accelerators`.

  >>> import hawis_jax as hx
  >>> import jax
  >>> import numpy as np
  >>> net = hx.cifar_resnet(8, (4, 4, 4, 6, 6, 8, 8), num_classes=10, levels=8)
  >>> variables = hx.init_variables(net, jax.random.key(0), (8, 8, 1))
  >>> images, labels = np.zeros((6, 8, 8, 1), np.uint8), np.arange(6)
  >>> device = hx.PRESETS["hawis_published"]
  >>> hx.evaluate_chips(
  ...   jax.random.key(1), net, variables, images, labels, device, num_chips=4
  ... ).shape
  (4,)

  Args:
    key: of the run; chip s is fold_in(key, s).
    module: the net; one of your own by `hx.any_flax`.
    variables: its `params` and `batch_stats`; `converters` where the device's
      range is calibrated, from `calibration.calibrate_converters`.
    images: uint8 `[N, H, W, C]`; they stay on the host. For a net of
      `hx.any_flax` numbers of any type and shape `[N, ...]`.
    labels: int `[N]`.
    device: every chip's device.
    num_chips: S.
    calibration: uint8 `[M, B, H, W, C]`: recalibrate BN on every chip with
      these images ("chip" mode); None: keep `batch_stats` ("fixed" mode).
    faults: measured ones that all chips have, see `crossbar.program`.
    layers: patterns of the layers on chips, see `crossbar.program`; None: all.
    placing: of the weights, on every chip for its own stuck cells and dead
      lines, which are assumed to be known (write-verify); None: as they come.
    compensated: multiply each layer's sums by one factor that is measured on
      every chip, see `calibration.compensate`.
    limits: of chips, images and memory a step.
    accelerators: to run on; None: all.

  Returns:
    float32 `[S]` accuracies, shares of the images.

  Raises:
    InputError: a bad argument; the device can't read the net; the net never
      reads a layer that chips hold; a variable, or a chip's weights or logits,
      are not finite; one chip does not fit the memory.
  """
  if not monte_carlo.is_number(num_chips, whole=True) or num_chips < 1:
    raise errors.InputError(
      f"num_chips: got {num_chips!r}, allowed is a whole number of at least 1"
    )
  key = backend.typed_key(key)
  any_flax.check_net(module)
  layers = None if layers is None else tuple(layers)  # to be hashed
  images = np.asarray(images)
  if isinstance(module, any_flax.AnyFlax):
    variables = {"batch_stats": {}, **any_flax.plain(variables)}
    # jax has no 64 bits, unless it is told to.
    images = images.astype(jax.dtypes.canonicalize_dtype(images.dtype))
  setting = monte_carlo.Setting(
    module,
    variables,
    device,
    faults,
    layers,
    calibration,
    placing,
    compensated,
  )
  chunks = monte_carlo.classify(
    key,
    setting,
    images,
    np.asarray(labels),
    range(num_chips),
    limits=limits,
    devices=accelerators,
  )
  correct = np.concatenate([chunk.sum(1) for chunk in chunks])
  return correct.astype(np.float32) / np.float32(len(labels))


def ideal_accuracy(
  module: nn.Module, variables: dict, batches: Iterable[monte_carlo.Batches]
) -> float:
  """Returns the accuracy of one net on a defect-free chip.

  Batches come one at a time, without the axis N.

  Raises:
    InputError: a logit is not finite: the net would seem to be a bad one.
  """
  correct, images = 0, 0
  for batch in batches:
    found, count, finite = _correct(module, variables, batch)
    if not finite:
      raise errors.InputError(
        "variables: got a net whose logits are not finite, needed are finite "
        "ones"
      )
    correct, images = correct + int(found), images + int(count)
  return correct / images


@functools.partial(jax.jit, static_argnums=0)
def _correct(module, variables, batch):
  inputs = module.encode(batch.image)
  logits = module.apply(variables, inputs, train=False)
  correct = (logits.argmax(-1) == batch.label) & batch.mask
  return correct.sum(), batch.mask.sum(), jnp.isfinite(logits).all()
