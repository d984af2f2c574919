"""Figures that no refactoring may change; test_golden_results.py holds them.

python tests/golden/make.py

writes them anew, for a change that is meant to change results. Nets, images and
labels stay: they are in nets.npz, so that no figure depends on how nets are
initialised (but that of `training`, which says so).
"""

import dataclasses
import functools
import pathlib
import runpy

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import cost
from hawis_jax import crossbar
from hawis_jax import data
from hawis_jax.config import settings
from hawis_jax.networks import net_variables
from hawis_jax.networks import reference_resnet
from hawis_jax.networks import resnet
from hawis_jax.pipeline.experiment import with_splits
from hawis_jax.robustness import calibration
from hawis_jax.robustness import monte_carlo
from hawis_jax.search import reward
from hawis_jax.training import optimization
from hawis_jax.training import supernet

_HERE = pathlib.Path(__file__).parent
_NETS, _FIGURES = _HERE / "nets.npz", _HERE / "figures.npz"
_WIDTHS = (6, 5, 6, 8, 10, 12, 12)
_BINARY = resnet.cifar_resnet(8, _WIDTHS, 10, levels=8)
# The published mapping, as the figures are of it.
_INT8 = reference_resnet.cifar_reference(
  8, _WIDTHS, 10, bits=8, scales="tensor"
)
_MODULES = {"binary": _BINARY, "int8": _INT8}
_SHAPE = (8, 8, 1)
_CORRECT = "hits"  # the name on disk of what is classified right

_DEVICE = crossbar.Device(tile_shape=(24, 16))
_STUCK = {"stuck_off": 0.1, "stuck_on": 0.02}
_VARIATION = {"stuck_off": 0.1, "variation": 0.4}
_NOISE = {"stuck_off": 0.05, "read_noise": 2e3}
_CALIBRATED = {"adc_bits": 5, "adc_range": "calibrated", "stuck_off": 0.1}
# The net, what is wrong with its chips, and its layers on them (None: all).
_CHIPS = {
  "stuck": ("binary", _STUCK, None),
  "variation": ("binary", _VARIATION, None),
  "noise": ("binary", {**_NOISE, "adc_bits": 5}, ("stem", "stage2_*")),
  "calibrated": ("binary", _CALIBRATED, ("stage3_*", "head")),
  "wires": ("binary", {"stuck_off": 0.05, "wire_resistance": 3.0}, None),
  "int8": ("int8", {"variation": 0.2}, None),
}
_EFFECTS = {
  "stuck_on": 0.2,
  "stuck_off": 0.2,
  "dead_rows": 0.2,
  "dead_columns": 0.2,
  "variation": 0.3,
  "gaussian_variation": 0.3,
  "write_error": 1.0,
  "drift_time": 1e4,
  "read_noise": 1e3,
  "telegraph_noise": 1.0,
  "legacy_noise": 1.0,
  "wire_resistance": 3.0,
  "load_resistance": 3.0,
  "adc_bits": 4,
}


def nets():
  """{"net/collection/layer/variable": array}, images, and labels of a net.

  Labels are the ideal net's: what is not classified right says what chips
  change.
  """
  found = dict(np.load(_NETS))
  # Half precision, so that the file is small.
  return {
    name: x.astype(np.float32) if x.dtype == np.float16 else x
    for name, x in found.items()
  }


def _variables(found, net):
  """A net's variables."""
  prefix = f"{net}/"
  flat = {
    name.removeprefix(prefix): x
    for name, x in found.items()
    if name.startswith(prefix)
  }
  return traverse_util.unflatten_dict(flat, sep="/")


def engine(name):
  """Images that chips classify right, packed: uint8 `[chips, images / 8]`."""
  found = nets()
  net, fields, layers = _CHIPS[name]
  module, variables = _MODULES[net], _variables(found, net)
  device = dataclasses.replace(_DEVICE, **fields)
  if device.adc_range == "calibrated":
    variables = calibration.calibrate_converters(
      module, variables, found["images"], device
    )
  chunks = monte_carlo.classify(
    jax.random.key(5),
    monte_carlo.Setting(module, variables, device, layers=layers),
    found["images"],
    found[f"labels_{net}"],
    range(6),
  )
  correct = np.packbits(np.concatenate(list(chunks)), axis=1)
  return {_CORRECT: correct}


def scorer():
  """Correct images and cross-entropies of width vectors, `[S, P]`."""
  found = nets()
  scenarios = [
    dataclasses.replace(_DEVICE, **fields)
    for fields in (_STUCK, _VARIATION, _NOISE)
  ]
  blocks = found["images"].reshape(3, 16, *_SHAPE)
  labels = found["labels_binary"].reshape(3, 16)
  mask = np.arange(48).reshape(3, 16) < 41
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
  scores = jax.jit(reward.make_score(_BINARY, scenarios, 3, mesh))(
    reward.Scorer(
      params=_variables(found, "binary")["params"],
      images=monte_carlo.Batches(blocks, labels, mask),
      calibration=blocks[:2],
    ),
    np.array(
      [
        _WIDTHS,
        (3, 5, 2, 8, 4, 7, 12),
        (6, 2, 6, 4, 10, 6, 12),
        (1, 5, 3, 8, 5, 12, 9),
        (2, 2, 2, 3, 3, 4, 4),
      ],
      np.int32,
    ),
    reward.chip_keys(jax.random.key(9), 4, len(scenarios)),
  )
  return {_CORRECT: scores.correct, "cross_entropy": scores.cross_entropy}


def chips():
  """What `crossbar.program` makes of one kernel, for each effect alone."""
  base = crossbar.without_defects(crossbar.preset("pcm"))
  base = dataclasses.replace(base, tile_shape=(16, 8))
  kernel = nets()["binary/params/stage1_block0/conv1/kernel"]
  params = {"params": {"layer": {"kernel": kernel}}}

  @jax.jit
  def program():
    found = {}
    for name, severity in _EFFECTS.items():
      device = dataclasses.replace(base, **{name: severity})
      net = crossbar.program(jax.random.key(3), params, device)
      layer = net["crossbar"]["layer"]
      entry = layer.get("variances", layer.get("kernels", layer.get("weight")))
      found[name] = entry
    return found

  # What are whole numbers must stay so, to the bit.
  return {
    name: x.astype(np.int8) if (x == np.rint(x)).all() else x
    for name, x in jax.device_get(program()).items()
  }


def budgets():
  """Draws within the budget of the digits' configuration; its cost tables."""
  path = _HERE.parents[1] / "configs" / "digits.py"
  config = runpy.run_path(str(path))["get_config"]()
  settings.validate(config)
  splits = data.Splits("digits", "", None, None, None, _SHAPE, 10)
  experiment = with_splits(config, splits)
  keys = jax.random.split(jax.random.key(1), 512)
  draw = jax.jit(jax.vmap(experiment.feasible.sample))
  tables = {
    f"cost_{kind}": cost.tables(
      experiment.space.table, experiment.geometry, kind
    )
    for kind in cost.KINDS
  }
  return {"draws": np.asarray(draw(keys), np.uint8), **tables}


def training():
  """Digests of fresh variables, and of one sandwich step's gradients.

  Of every array the sum of magnitudes, and a weighted sum as a share of it.
  """
  found = nets()
  params = _variables(found, "binary")["params"]
  config = settings.default().pretrain.optimizer
  optimizer = optimization.make_optimizer(config, 100)
  # A layer of one channel may be constant, and its sign one of rounding.
  vectors = _WIDTHS, (2, 3, 2, 4, 4, 6, 6), (3, 5, 2, 8, 4, 7, 12)
  widths = np.array(vectors, np.int32)
  batch = {
    "image": found["images"][:32],
    "label": found["labels_binary"][:32].astype(np.int32),
  }

  @jax.jit
  def step(params):
    fresh = net_variables.init(_BINARY, jax.random.key(2), _SHAPE)
    state = optimization.TrainState(params, {}, optimizer.init(params))
    after, values = supernet.sandwich_step(
      state,
      widths,
      batch,
      module=_BINARY,
      optimizer=optimizer,
      distill=True,
    )
    return fresh, after.params, after.opt_state, values

  fresh, params, opt_state, values = jax.device_get(step(params))
  named = {"fresh": fresh, "params": params, "optimizer": opt_state}
  digests = {
    name: np.array([_digest(x) for x in jax.tree.leaves(tree) if np.ndim(x)])
    for name, tree in named.items()
  }
  return {**digests, **values}


def _digest(x):
  x = np.asarray(x, np.float64).ravel()
  size = np.abs(x).sum()
  # What is all but 0, as a gradient may be, is what rounding leaves.
  return size, (x * np.cos(np.arange(x.size))).sum() / max(size, 1e-3)


# What makes figures, and how far floats may be off; integers never are.
GROUPS = {
  **{f"engine_{x}": (functools.partial(engine, x), None) for x in _CHIPS},
  "scorer": (scorer, 1e-6),
  "chips": (chips, 2e-6),
  "budgets": (budgets, 1e-12),
  "training": (training, 1e-5),
}


def stored(group):
  """The figures of a group that are on disk."""
  prefix = f"{group}/"
  return {
    name.removeprefix(prefix): x
    for name, x in np.load(_FIGURES).items()
    if name.startswith(prefix)
  }


def _make_nets():
  rng = np.random.default_rng(2024)
  found = {"images": rng.integers(0, 256, (48, *_SHAPE)).astype(np.uint8)}
  for name, module in _MODULES.items():
    net = net_variables.init(module, jax.random.key(7), _SHAPE)
    half = jax.tree.map(lambda x: x.astype(jnp.float16), net["params"])
    net["params"] = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    code = module.encode(jnp.asarray(found["images"]))
    float_net = module.clone(weight_bits=None) if name == "int8" else module
    net["batch_stats"] = net_variables.recalibrate(
      float_net, net, jnp.asarray(found["images"])[None]
    )
    if name == "int8":
      net = reference_resnet.quantize(module, net, found["images"][None])
    logits = module.apply(net, code, train=False)
    found[f"labels_{name}"] = np.asarray(logits).argmax(-1).astype(np.uint8)
    net["params"] = half
    flat = traverse_util.flatten_dict({name: net}, sep="/")
    found |= {path: np.asarray(x) for path, x in flat.items()}
  np.savez_compressed(_NETS, **found)


def main():
  if not _NETS.exists():
    _make_nets()
  found = {
    f"{group}/{name}": np.asarray(x)
    for group, (make, _) in GROUPS.items()
    for name, x in make().items()
  }
  np.savez_compressed(_FIGURES, **found)


if __name__ == "__main__":
  main()
