"""Scores width vectors on chips, with the weights of the super-net.

Axes: P width vectors, S chips of all scenarios, N batches, B images, L layers.
"""

from collections.abc import Iterator, Sequence
import functools
import pathlib

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import config as config_lib
from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax import experiment as experiment_lib
from hawis_jax import files
from hawis_jax import metrics as metrics_lib
from hawis_jax import montecarlo
from hawis_jax import preemption
from hawis_jax import processes
from hawis_jax import robustness
from hawis_jax import sharding
from hawis_jax import variables

P = jax.sharding.PartitionSpec
_VECTORS_PER_CALL = 8  # of the final scoring


@flax.struct.dataclass
class Scorer:
  """What a score depends on beside width vectors and chips.

  Attributes:
    params: of the super-net.
    images: to score on.
    calibration: uint8 `[N, B, H, W, C]`, for BN recalibration.
  """

  params: chex.ArrayTree
  images: robustness.Batches
  calibration: chex.Array


def make_scorer(
  experiment: experiment_lib.Experiment, params: chex.ArrayTree
) -> Scorer:
  """Scores on the first validation images, calibrates on training images."""
  config = experiment.config.search
  calibration = experiment.evaluation(
    experiment.splits.train, config.batch_size, config.calibration_images
  )
  return Scorer(
    params=params,
    images=experiment.evaluation(
      experiment.splits.validation, config.batch_size, config.images
    ),
    calibration=calibration.image,
  )


def make_score(
  experiment: experiment_lib.Experiment,
  devices: Sequence[crossbar.Device],
  mesh: jax.sharding.Mesh | None = None,
):
  """Returns (scorer, widths [P, L], keys) -> Scores of `[S, P]`.

  `keys` are those of the chips of every device, `[S_i]` each; S is their sum,
  device-major. BN is recalibrated at every vector's widths before it is scored.
  Vectors are shared out over the mesh, and scored in blocks of
  `config.search.vectors_per_step`, for memory's sake.

  Args:
    experiment: of the run.
    devices: of the scenarios.
    mesh: all its devices take part; None: of all devices.
  """
  module = experiment.supernet
  mesh = sharding.training_mesh() if mesh is None else mesh

  def score(scorer, widths, keys):
    num, shares = len(widths), mesh.size
    # Equal shares of whole blocks; the last vector fills up.
    most = min(-(-num // shares), experiment.config.search.vectors_per_step)
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
    """The vectors of one device."""
    scores = jax.lax.map(
      lambda part: score_block(scorer, part, keys),
      widths.reshape(-1, block, widths.shape[-1]),
    )
    return jax.tree.map(
      lambda x: x.swapaxes(0, 1).reshape(-1, len(widths)), scores
    )

  def score_block(scorer, widths, keys):
    params = {"params": scorer.params}
    bits = jax.vmap(module.encode)(scorer.calibration)
    ideal = montecarlo.ideal_net(params)
    norms = jax.vmap(lambda w: variables.recalibrate(module, ideal, bits, w))(
      widths
    )
    parts = [
      robustness.score_chips(
        module, params, widths, norms, scorer.images, chips, device
      )
      for device, chips in zip(devices, keys, strict=True)
    ]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)

  return score


def chip_keys(
  key: chex.PRNGKey, chips: int, scenarios: int
) -> list[chex.Array]:
  """Keys of every scenario's chips; chip i has the same one in all of them."""
  return [jax.random.split(key, chips)] * scenarios


def robust_score(
  values: chex.Array, scenarios: int, cvar_weight: float
) -> chex.Array:
  """(1 - b) mean + b CVaR_25% over chips, averaged over scenarios.

  Args:
    values: `[S, P]`, scenario-major; greater is better.
    scenarios: their number.
    cvar_weight: b.

  Returns:
    `[P]`.
  """
  values = values.reshape(scenarios, -1, values.shape[-1])
  mix = (1 - cvar_weight) * values.mean(1)
  return (mix + cvar_weight * robustness.cvar(values, axis=1)).mean(0)


def score_vectors(
  experiment: experiment_lib.Experiment,
  scorer: Scorer,
  vectors: Sequence[tuple[int, ...]],
  key: chex.PRNGKey,
  metrics: metrics_lib.Metrics,
  path: pathlib.Path,
) -> Iterator[dict]:
  """Yields each vector's clean and robust score, on `finalist_chips` chips.

  Every few vectors their scores are saved, to go on from.

  Args:
    experiment: of the run.
    scorer: its super-net and images; scored on all validation images.
    vectors: widths, `[L]` each.
    key: of the chips.
    metrics: of the run, for progress.
    path: of the file that scores are saved to, and taken up from if they are
      of the same vectors, chips and super-net.

  Raises:
    Preempted: the run was asked to stop; the scores so far are saved.
  """
  config = experiment.config.search
  num_scenarios = len(config.scenarios)
  keys = chip_keys(key, config.finalist_chips, num_scenarios)
  keys.append(key[None])  # of the ideal device, the last
  scorer = scorer.replace(
    images=experiment.evaluation(
      experiment.splits.validation, config.batch_size
    )
  )
  devices = config_lib.search_devices(experiment.config)
  mesh = sharding.training_mesh()
  score = jax.jit(
    make_score(experiment, devices, mesh),
    out_shardings=sharding.replicated(mesh),
  )
  scorer, keys = sharding.place((scorer, keys), mesh)
  padded = list(vectors) + [vectors[-1]] * (-len(vectors) % _VECTORS_PER_CALL)
  accuracy = _score_parts(
    lambda part: np.asarray(score(scorer, part, keys).accuracy),
    np.array(padded, np.int32),
    path,
    [jax.random.key_data(key).tolist(), variables.digest(scorer.params)],
    metrics,
  )
  clean, accuracy = accuracy[-1], accuracy[:-1]
  robust = robust_score(accuracy, num_scenarios, config.cvar_weight)
  per_chip = accuracy.astype(np.float64)
  per_chip = per_chip.reshape(num_scenarios, -1, len(padded)).mean(0)
  for index, widths in enumerate(vectors):
    yield {
      "widths": list(widths),
      "cost": experiment.exact_costs(widths),
      "score": float(robust[index]),
      "clean": float(clean[index]),
      # Chip i of every scenario has the same key: their mean, to be paired.
      "chips": per_chip[:, index].tolist(),
      "scenarios": [
        robustness.summarize(chips)
        for chips in accuracy[:, index].reshape(num_scenarios, -1)
      ],
    }


def _score_parts(score, vectors, path, identity, metrics):
  """Accuracies `[S, P]` of `vectors`, some at a time, each time saved."""
  identity = [*identity, vectors.tolist()]
  saved = processes.on_first(
    lambda: files.read_record(path) if path.exists() else None
  )
  parts = []
  if saved and saved["of"] == identity:
    parts = [np.array(part, np.float32) for part in saved["accuracy"]]
  done = len(parts) * _VECTORS_PER_CALL
  if done < len(vectors):
    progress = metrics.stage("search/finalists", len(vectors), done)
  for start in range(done, len(vectors), _VECTORS_PER_CALL):
    end = start + _VECTORS_PER_CALL
    parts.append(score(vectors[start:end]))
    # Before it is saved: a line too many is dropped, one too few is missing.
    progress.report(end, {"accuracy": parts[-1].mean()})
    metrics.flush()
    content = {"of": identity, "accuracy": [part.tolist() for part in parts]}
    processes.on_first(
      lambda content=content: files.write_record(path, content)
    )
    if preemption.reached():
      raise errors.Preempted(
        f"search/finalists, saved at vector {end} of {len(vectors)}"
      )
  return np.concatenate(parts, axis=1)
