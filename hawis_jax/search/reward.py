"""The reward of width vectors: robust scores on chips, by super-net weights.

Axes: P width vectors, S chips of all scenarios, N batches, B images, L layers.
"""

from collections.abc import Callable, Sequence
import functools

import chex
import flax
from flax import linen as nn
import jax
import jax.numpy as jnp

from hawis_jax import crossbar
from hawis_jax.networks import net_variables
from hawis_jax.robustness import monte_carlo
from hawis_jax.robustness import statistics
from hawis_jax.runtime import sharding

P = jax.sharding.PartitionSpec


@flax.struct.dataclass
class Scorer:
  """What a score depends on beside width vectors and chips."""

  params: chex.ArrayTree  # of the super-net
  images: monte_carlo.Batches  # to score on
  calibration: chex.Array  # uint8 `[N, B, H, W, C]`, for BN recalibration


def make_score(
  module: nn.Module,
  devices: Sequence[crossbar.Device],
  block: int,
  mesh: jax.sharding.Mesh | None = None,
  batch_norm: Callable[..., dict] | str = "fixed",
) -> Callable[..., monte_carlo.Scores]:
  """Returns (scorer, widths [P, L], keys) -> Scores of `[S, P]`.

  `keys` are those of the chips of every device, `[S_i]` each; S is their sum,
  device-major. BN is recalibrated at every vector's widths before it is scored:
  "fixed", with ideal weights; "chip", on each chip; or by a function, (params,
  calibration batches, widths) -> `batch_stats`.
  Vectors are shared out over the mesh (None: all accelerators), each of which
  scores `block` of them at a time, for memory's sake.

  Raises:
    InputError: a bad device.
  """
  mesh = sharding.training_mesh() if mesh is None else mesh
  for device in devices:
    crossbar.validate(device)

  def score(scorer, widths, keys):
    num, shares = len(widths), mesh.size
    # Equal shares of whole blocks, for one program; the last vector fills up.
    most = min(-(-num // shares), block)
    blocks = -(-num // (shares * most))
    size = shares * blocks * most
    places = jnp.minimum(jnp.arange(size), num - 1)
    axes = mesh.axis_names
    whole = jax.shard_map(
      functools.partial(score_share, block=most),
      mesh=mesh,
      in_specs=(P(), P(axes), P()),
      out_specs=P(None, axes),
      check_vma=False,
    )(scorer, widths[places], keys)
    return jax.tree.map(lambda x: x[:, :num], whole)

  def score_share(scorer, widths, keys, block):
    """Scores the vectors of one accelerator."""
    scores = jax.lax.map(
      lambda part: score_block(scorer, part, keys),
      widths.reshape(-1, block, widths.shape[-1]),
    )
    return jax.tree.map(
      lambda x: x.swapaxes(0, 1).reshape(-1, len(widths)), scores
    )

  def score_block(scorer, widths, keys):
    params = {"params": scorer.params}
    images = scorer.calibration
    norms = None
    if batch_norm == "fixed":
      ideal = monte_carlo.ideal_net(params)
      norms = jax.vmap(
        lambda w: net_variables.recalibrate(module, ideal, images, w)
      )(widths)
    elif batch_norm != "chip":
      norms = jax.vmap(batch_norm, (None, None, 0))(params, images, widths)
    parts = [
      monte_carlo.score_chips(
        module, params, widths, norms, scorer.images, chips, device, images
      )
      for device, chips in zip(devices, keys, strict=True)
    ]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)

  return score


def chip_keys(
  key: chex.PRNGKey, chips: int, scenarios: int
) -> list[chex.Array]:
  """Returns keys of every scenario's chips, the same in all of them."""
  return [jax.random.split(key, chips)] * scenarios


def robust_score(
  values: chex.Array, scenarios: int, cvar_weight: float
) -> chex.Array:
  """Returns (1 - b) mean + b CVaR_25% over chips, averaged over scenarios.

  Values are `[S, P]`, scenario-major, and the greater the better; scores `[P]`.
  The mean alone would not see a few chips that fail: b = `cvar_weight` does.
  """
  values = values.reshape(scenarios, -1, values.shape[-1])
  mix = (1 - cvar_weight) * values.mean(1)
  return (mix + cvar_weight * statistics.cvar(values, axis=1)).mean(0)
