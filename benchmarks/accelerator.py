"""What an accelerator does: the same as the CPU, and how fast. One command.

python benchmarks/accelerator.py NAME [--recipe 1x]

It needs no internet and no data but the embedded digits (the recipe: prepared
CIFAR-10). Every piece is a process of 8 minutes at most; what it found is in
results/accelerator/NAME.json, and is not measured again: the same command goes
on with what is missing. At the end it prints all of it as one table.

  cpu, correct   which images a ResNet-20 1x classifies correctly on 8 chips, by
                 the CPU and by the accelerator: images of all chips on which
                 they differ. Of stuck cells alone sums are exact integers, so
                 none may; with variation sums are rounded, and activations that
                 are at their threshold may turn.
  peak           of a matrix product [TFLOP/s; of int8 TOP/s]
  sampler        random words by Threefry, as cells are drawn, and by XLA's rbg
  monte carlo    chips x 1,000 images a second, drawing included, by each way of
                 the products on chips (hawis_jax/networks/products.py); its
                 multiply-adds as a share of the bf16 and of the int8 peak
  search         width vectors scored a second, of benchmarks/scoring.py
  train          images a second of a step, of benchmarks/train_step.py
  IR drop        arrays of 64 x 64 a second, solved exactly
  recipe         configs/cifar10_resnet20.py:1x, as far as 8 minutes go each
                 time: the same command goes on

--small: all of it at tiny run, on any backend, into --folder: a test of this
script, no measurement. Without it a CPU is refused.
"""

import functools
import itertools
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time

from flax import traverse_util
import ir_drop
import jax
import jax.numpy as jnp
import measure
import monte_carlo
import numpy as np
import scoring
import train_step

from hawis_jax.crossbar import draws
from hawis_jax.networks import net_variables
from hawis_jax.networks import products
from hawis_jax.networks import width_vectors
from hawis_jax.robustness import monte_carlo as engine
from hawis_jax.runtime import storage

_FOLDER = measure.ROOT / "results" / "accelerator"
_LIMIT = 8 * 60  # seconds of a piece
_STOPPING = 60  # of them, to save
_WAYS = {method: products.Way(method) for method in products.METHODS}
_WAYS["loop, parts"] = products.Way("loop", parts=True)
_STEPS = ("plain", "both, K = 1", "both, K = 2")


class _Run:
  """What is measured, at which run; small ones only try it."""

  def __init__(self, path, small):
    self.path = path
    self.reference = path.with_suffix(".npz")  # of the piece `cpu`
    self.nets = {"1x": "resnet20_1x", "hawis_a": "resnet20_hawis_a"}
    self.depth, self.chips, self.images = 20, 32, 1000
    self.matrix, self.tiles, self.arrays, self.rounds = 8192, 2**13, 512, 5
    self.vectors, self.batch, self.search = 64, 256, dict(network__depth=8)
    if small:
      self.nets, self.depth = {"tiny": (6, 5, 6, 8, 10, 12, 12)}, 8
      self.chips, self.images = 2, 16
      self.matrix, self.tiles, self.arrays, self.rounds = 128, 2, 2, 1
      self.vectors, self.batch = 2, 8
      self.search |= dict(search__images=16, search__vectors_per_step=2)

  def network(self, net):
    """Returns (module, variables)."""
    return monte_carlo.network(self.nets[net], self.depth)


def _classify(net, images, labels):
  """{device: which images are classified correctly, bool `[8, N]`}."""
  found = {}
  for name, device in monte_carlo.DEVICES.items():
    setting = engine.Setting(*net, device)
    problem = jax.random.key(7), setting, images, labels, range(8)
    found[name] = np.concatenate(list(engine.classify(*problem)))
  return found


def _cpu(run):
  """Makes a net and images, which it classifies, for `_correct`."""
  module, variables = run.network(next(iter(run.nets)))
  images = monte_carlo.images_of(run.images)
  code = module.encode(jnp.asarray(images))
  # With any other statistics it would find nearly all images alike.
  measured = jax.jit(net_variables.recalibrate, static_argnums=0)
  variables["batch_stats"] = measured(module, variables, images[None])
  logits = jax.jit(functools.partial(module.apply, train=False))
  labels = np.asarray(logits(variables, code).argmax(-1), np.int32)
  correct = _classify((module, variables), images, labels)
  flat = traverse_util.flatten_dict(variables, sep="/")
  arrays = dict(images=images, labels=labels, **flat, **correct)
  storage.write_npz(run.reference, arrays)
  return {f"{name}: correct [%]": 100 * x.mean() for name, x in correct.items()}


def _correct(run):
  with np.load(run.reference) as file:
    known = dict(file)
  images, labels = known.pop("images"), known.pop("labels")
  expected = {name: known.pop(name) for name in monte_carlo.DEVICES}
  module, _ = run.network(next(iter(run.nets)))
  net = module, traverse_util.unflatten_dict(known, sep="/")
  found = {}
  for name, way in _WAYS.items():
    with products.using(way):
      got = _classify(net, images, labels)
    for device, correct in got.items():
      row = f"{device}, {name}: of {correct.size} images differ"
      found[row] = int((correct != expected[device]).sum())
  return found


def _peak(run):
  """Matrix products of each type."""
  size, found = run.matrix, {}
  for name, dtype, sums in (
    ("bf16", jnp.bfloat16, jnp.float32),
    ("int8", jnp.int8, jnp.int32),
    ("float32", jnp.float32, jnp.float32),
  ):
    operand = jnp.ones((size, size), dtype)
    product = jax.jit(
      lambda a, b, sums=sums: jnp.matmul(
        a, b, precision="highest", preferred_element_type=sums
      )
    )
    seconds = measure.least(
      functools.partial(product, operand, operand), run.rounds
    )
    found[name] = 2 * size**3 / seconds / 1e12
  return found


def _sampler(run):
  """Words of the cells of tiles, each with a key of its own; or of one key."""
  shape = 2, 64, 64

  @functools.partial(jax.jit, static_argnums=0)
  def draw(sampler, seed):
    key = jax.random.key(seed, impl=sampler)
    if sampler == "rbg":
      return jax.random.bits(key, (run.tiles, *shape)).sum()
    keys = jax.random.split(key, run.tiles)
    return jax.vmap(lambda key: draws.words(key, shape))(keys).sum()

  samplers = ("threefry2x32", "rbg")
  calls = {name: functools.partial(draw, name, 0) for name in samplers}
  times = measure.seconds(calls, run.rounds)
  count = run.tiles * math.prod(shape) / 1e9
  return {f"{name} [G words/s]": count / time for name, time in times.items()}


def _monte_carlo(net, device, way, run):
  peak = _load(run.path)["pieces"]["peak"]["figures"]
  counts = run.chips, run.images
  with products.using(_WAYS[way]):
    call = monte_carlo.evaluation_of(
      run.network(net), monte_carlo.DEVICES[device], *counts
    )
    rate = math.prod(counts) / measure.least(call, run.rounds)
  operations = 2 * monte_carlo.macs(run.nets[net], run.depth) * rate / 1e12
  shares = {
    f"share of the {kind} peak [%]": 100 * operations / peak[kind]
    for kind in ("bf16", "int8")
  }
  return {"chips x 1,000 images a second": rate / 1000, **shares}


def _search(run):
  experiment = measure.prepare(None, **run.search)
  vectors = scoring.random_vectors(experiment, run.vectors)
  calls = scoring.scoring_calls(experiment, vectors, 4)
  times = measure.seconds({"both": calls["both"]}, run.rounds)
  return {"vectors/s": run.vectors / times["both"]}


def _train(run):
  found = {}
  for name, net in run.nets.items():
    widths = width_vectors.PRESETS.get(net, net)
    call = train_step.net_calls(widths, run.batch, 10)["step"]
    time = measure.least(call, run.rounds)
    found[f"CIFAR, {name} [images/s]"] = run.batch / time
  calls = train_step.chip_calls(run.batch)
  calls = {name: calls[name] for name in _STEPS}
  for name, time in measure.seconds(calls, run.rounds).items():
    found[f"digits, {name} [images/s]"] = run.batch / time
  return found


def _ir_drop(run):
  call = ir_drop.solving(ir_drop.random_arrays(run.arrays, 64, 64))
  return {"arrays/s": run.arrays / measure.least(call, run.rounds)}


def _pieces(run):
  """{name: function of the run}; the later ones need the first three."""
  pieces = {"cpu": _cpu, "correct": _correct, "peak": _peak}
  keys = itertools.product(run.nets, monte_carlo.DEVICES, _WAYS)
  for net, device, way in keys:
    if device == "stuck" and _WAYS[way].parts:
      continue  # it has no float32 weights
    name = f"monte carlo, {net}, {device}, {way}"
    pieces[name] = functools.partial(_monte_carlo, net, device, way)
  return pieces | {
    "search": _search,
    "train": _train,
    "IR drop": _ir_drop,
    "sampler": _sampler,
  }


def _load(path):
  return storage.read_json(path) if path.exists() else {"pieces": {}}


def _measure(name, run, small):
  """Prints what a piece finds, in a process of its own."""
  if name != "cpu" and not small and jax.default_backend() == "cpu":
    sys.exit("the backend is a CPU, needed is an accelerator; or --small")
  assert not jax.config.jax_enable_x64
  start = time.monotonic()
  figures = _pieces(run)[name](run)
  seconds = time.monotonic() - start
  found = {"machine": measure.machine(), "seconds": seconds}
  print(json.dumps(found | {"figures": figures}))


def _in_a_process(name, options):
  """Returns what a piece found, or None and says why."""
  environment = dict(os.environ)
  # Programs that are compiled before the limit need not be compiled again.
  cache = str(measure.ROOT / "runs" / "jax_cache")
  environment.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
  if name == "cpu":
    environment["JAX_PLATFORMS"] = "cpu"
  command = [sys.executable, __file__, *sys.argv[1:], "--piece", name]
  try:
    done = subprocess.run(
      command,
      env=environment,
      stdout=subprocess.PIPE,
      text=True,
      timeout=options.limit,
    )
  except subprocess.TimeoutExpired:
    print(f"{name}: stopped after {options.limit} s", flush=True)
    return None
  if done.returncode:
    print(f"{name}: ended with {done.returncode}", flush=True)
    return None
  return json.loads(done.stdout.splitlines()[-1])


def _recipe(name, run, options):
  """Trains and measures a net, further each time; how far, and if it ends."""
  workdir = run.path.with_suffix("") / f"recipe_{name}"
  command = [sys.executable, "-m", "hawis_jax.main", f"--workdir={workdir}"]
  config = measure.ROOT / "configs" / "cifar10_resnet20.py"
  with subprocess.Popen([*command, f"--config={config}:{name}"]) as training:
    try:
      training.wait(options.limit - _STOPPING)
    except subprocess.TimeoutExpired:
      training.send_signal(signal.SIGTERM)  # it saves, and ends
  metrics = workdir / "metrics.jsonl"
  if not metrics.exists():
    return None
  last = json.loads(metrics.read_text().splitlines()[-1])
  figures = {f"step of {last['stage']}": last["step"], **last["values"]}
  return {"figures": figures, "finished": training.returncode == 0}


def _print(found):
  for name, piece in found["pieces"].items():
    for row, value in piece["figures"].items():
      print(f"{name:36} {row:44} {value:12.5g}")


def main() -> None:
  """Measures what is missing and prints the table."""
  parser = measure.parser(__doc__)
  parser.add_argument("name", help="of the file, e.g. tpu_v5e")
  parser.add_argument("--recipe", help="1x, 4x, hawis_a or hawis_b")
  parser.add_argument("--small", action="store_true")
  parser.add_argument("--folder", type=pathlib.Path)
  parser.add_argument("--limit", type=float, default=_LIMIT, help="[s]")
  parser.add_argument("--piece", help="this one, in this process")
  options = parser.parse_args()
  if options.small and not options.folder:
    parser.error("--small needs --folder: what it finds is no result")
  path = (options.folder or _FOLDER).resolve() / f"{options.name}.json"
  run = _Run(path, options.small)
  if options.piece:
    _measure(options.piece, run, options.small)
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  found = _load(path)
  calls = {
    name: functools.partial(_in_a_process, name, options)
    for name in _pieces(run)
  }
  if options.recipe:
    recipe = functools.partial(_recipe, options.recipe, run, options)
    calls[f"recipe {options.recipe}"] = recipe
  missing = []
  for name, call in calls.items():
    piece = found["pieces"].get(name)
    if piece and piece.get("finished", True):
      continue
    piece = call()
    if piece is None:
      missing.append(name)
      continue
    found["pieces"][name] = piece | {"revision": measure.revision()}
    storage.write_json(path, found)
    print(f"{name}: done", flush=True)
  _print(found)
  if missing:
    sys.exit(f"missing: {'; '.join(missing)}; the same command tries again")


if __name__ == "__main__":
  main()
