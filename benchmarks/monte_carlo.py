r"""Monte Carlo over chips against a PyTorch loop and the machine's peak.

pip install torch==2.13.0  # optional: without it, (a) is left out
python benchmarks/monte_carlo.py
MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 \
  python benchmarks/monte_carlo.py  # allocator tuned for PyTorch

ResNet-20 at 1x and HAWIS-A on 100 random images of 32 x 32, random weights.
Seconds a chip and 100 images, the drawing of its defects included:

  variation  stuck cells and lognormal variation (float32 weights)
  stuck      stuck cells alone (bit planes, counted)
  (a)        a plain PyTorch loop that does what the published tolerance test
             does for either: unfold, 64 x 64 tiles, differential pairs, defects
             drawn at every forward pass
  (c)        the floor: the multiply-adds as one float32 matrix product at the
             peak measured here, the best of jax, NumPy and shapes

Beside them: CPU seconds that compiling takes, cost against the number of chips
(with the process's memory) and of images; and the ways to multiply by chips
that the engine chooses from.
"""

import functools
import os
import resource
import time

import jax
import jax.numpy as jnp
import measure
import numpy as np

from hawis_jax import cost
from hawis_jax import crossbar
from hawis_jax.arithmetic import binary
from hawis_jax.arithmetic import popcount
from hawis_jax.networks import net_variables
from hawis_jax.networks import resnet
from hawis_jax.networks import width_vectors
from hawis_jax.robustness import evaluation
from hawis_jax.robustness import monte_carlo as engine
from hawis_jax.runtime import sharding

try:
  import torch
except ImportError:
  torch = None

_IMAGES = 100
_TILE = 64
_NETS = ("resnet20_1x", "resnet20_hawis_a")
_STUCK = dict(stuck_on=0.0175, stuck_off=0.0904)
DEVICES = {
  "variation": crossbar.Device(**_STUCK, variation=0.5),
  "stuck": crossbar.Device(**_STUCK),
}
_COMPILED = {
  **DEVICES,
  "noise of reads": crossbar.Device(read_noise=0.1),
  "noise, 6-bit ADC": crossbar.Device(read_noise=0.1, adc_bits=6),
}
_PARTS = ("compiling", "scaling", "nets", "products")


def images_of(count):
  """Returns random images, uint8 `[count, 32, 32, 3]`."""
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)


def network(name, depth=20):
  """Returns (module, variables) of a preset, or of a width vector."""
  widths = width_vectors.PRESETS.get(name, name)
  module = resnet.cifar_resnet(depth, widths, 10)
  init = jax.jit(net_variables.init, static_argnums=(0, 2))
  return module, init(module, jax.random.key(0), (32, 32, 3))


def evaluation_of(net, device, chips, count=_IMAGES):
  """Returns a function that evaluates a net on some chips."""
  labels = np.zeros(count, np.int32)
  return functools.partial(
    evaluation.evaluate_chips,
    *(jax.random.key(0), *net, images_of(count), labels, device, chips),
  )


def _peak():
  """Greatest float32 matrix product rate [FLOP/s]."""
  best = 0.0
  for m, k, n in ((4096, 1152, 2048), (4096, 4096, 4096), (25600, 1008, 112)):
    pair = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
    for product, operands in (
      (np.matmul, pair),
      (jax.jit(jnp.matmul), jax.device_put(pair)),
    ):
      time = measure.least(functools.partial(product, *operands), 7)
      best = max(best, 2 * m * k * n / time)
  return best


class _TorchNet:
  """Binary ResNet-20 on chips in plain PyTorch, forward only."""

  def __init__(self, net, device):
    def tensor(x):
      order = (3, 2, 0, 1) if x.ndim == 4 else range(x.ndim)
      return torch.from_numpy(np.array(x).transpose(order).copy())

    self.params, self.stats = jax.tree.map(
      tensor, (net["params"], net["batch_stats"])
    )
    self.device = device

  def _tiles(self, sign):
    """Conductances of both arrays of every tile, drawn anew."""
    rows, columns = sign.shape
    sign = torch.nn.functional.pad(
      sign, (0, -columns % _TILE, 0, -rows % _TILE)
    )
    grid = sign.reshape(sign.shape[0] // _TILE, _TILE, -1, _TILE)
    grid = grid.transpose(1, 2)
    arrays = []
    for polarity in (1, -1):
      on, off = 3.33e-4, 3.33e-7
      g = torch.where(grid * polarity > 0, on, off)
      if self.device.variation:
        g = g * torch.exp(-self.device.variation * torch.randn_like(g))
      draw = torch.rand_like(g)
      g = torch.where(draw < self.device.stuck_on, on, g)
      arrays.append(torch.where(draw > 1 - self.device.stuck_off, off, g))
    return arrays

  def _conv(self, scope, x, stride=1):
    kernel = scope["kernel"]
    size, c_out = kernel.shape[-1], kernel.shape[0]
    sign = torch.sign(kernel).reshape(c_out, -1).t()
    positive, negative = self._tiles(sign)
    columns = torch.nn.functional.unfold(
      x, size, padding=size // 2, stride=stride
    )  # [B, rows, positions]
    pad = positive.shape[0] * _TILE - columns.shape[1]
    columns = torch.nn.functional.pad(columns, (0, 0, 0, pad))
    batch, _, positions = columns.shape
    voltage = columns.reshape(batch, 1, -1, _TILE, positions)
    # [1, col tiles, row tiles, columns, rows] x [B, 1, row tiles, rows, n]
    currents = [
      torch.matmul(g.permute(1, 0, 3, 2).unsqueeze(0), voltage)
      for g in (positive, negative)
    ]
    sums = (currents[0] - currents[1]).sum(2) / (3.33e-4 - 3.33e-7)
    out = int(np.sqrt(positions))
    sums = sums.reshape(batch, -1, positions)[:, :c_out]
    return sums.reshape(batch, c_out, out, out) * kernel.abs().mean()

  def _norm(self, name, x, scope, stats):
    moments = stats[name]["mean"], stats[name]["var"]
    own = scope[name]["scale"], scope[name]["bias"]
    return torch.nn.functional.batch_norm(x, *moments, *own)

  def __call__(self, images):
    levels = torch.arange(4, 256, 8).reshape(1, -1, 1, 1, 1)
    x = (images.unsqueeze(1) > levels).float().flatten(1, 2)
    p, s = self.params, self.stats
    x = self._norm("bn_stem", self._conv(p["stem"], x), p, s)
    for group in (1, 2, 3):
      for block in range(3):
        name = f"stage{group}_block{block}"
        scope, stats = p[name], s[name]
        stride = 2 if group > 1 and block == 0 else 1
        y = self._conv(scope["conv1"], (x > 0.5).float(), stride)
        y = self._norm("bn1", y, scope, stats)
        y = self._conv(scope["conv2"], (y > 0.5).float())
        skip = x[:, : y.shape[1], ::stride, ::stride]
        pad = y.shape[1] - skip.shape[1]
        x = y + torch.nn.functional.pad(skip, (0, 0, 0, 0, 0, pad))
        x = self._norm("bn2", x, scope, stats)
    x = self._norm("bn_head", torch.relu(x).mean((2, 3)), p, s)
    head = p["head"]["kernel"]
    scope = {"kernel": head.t().reshape(*head.t().shape, 1, 1)}
    return self._conv(scope, (x > 0.5).float()[..., None, None]).flatten(1)


def _torch_logits(net, device, images):
  model = _TorchNet(net, device)
  with torch.no_grad():
    return model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))


def _check_torch(module, net):
  """The PyTorch net without defects is ours: the same logits."""
  images = images_of(4)
  theirs = _torch_logits(net, crossbar.Device(), images)
  ours = module.apply(net, module.encode(jnp.asarray(images)), train=False)
  np.testing.assert_allclose(theirs, ours, rtol=1e-2, atol=1e-2)


def macs(name, depth=20):
  """Returns the multiply-adds of an image, of `network`."""
  tile = _TILE, _TILE
  geometry = cost.cifar_geometry(depth, (32, 32, 3), 32, 10, tile)
  widths = np.array(width_vectors.PRESETS.get(name, name), np.int64)
  return int(cost.network_cost(widths, geometry).macs)


def _of_nets(names, chips):
  peak = _peak()
  print(f"\nfloat32 peak {peak / 1e9:.0f} GFLOP/s")
  print(
    f"{'net':18} {'defects':10} {'ours s':>8} {'(c) s':>7} {'of peak':>8} "
    f"{'(a) s':>8} {'(a)/ours':>9}"
  )
  for name in names:
    net = network(name)
    if torch:
      _check_torch(*net)
    for label, device in DEVICES.items():
      ours = measure.least(evaluation_of(net, device, chips)) / chips
      floor = 2 * macs(name) * _IMAGES / peak
      line = f"{name:18} {label:10} {ours:8.4f} {floor:7.4f} "
      line += f"{100 * floor / ours:7.0f}%"
      if torch:
        call = functools.partial(
          _torch_logits, net[1], device, images_of(_IMAGES)
        )
        theirs = measure.least(lambda call=call: call().numpy(), 1)
        line += f" {theirs:8.3f} {theirs / ours:9.1f}"
      print(line, flush=True)


def _of_scaling(most):
  net = network(_NETS[0])
  print(f"{'chips':>6} {'images':>7} {'seconds a chip x 100':>21} {'MB':>7}")
  for chips, images in ((1, 512), (4, 512), (16, 512), (64, 512), (16, 2048)):
    if chips > most:
      continue
    call = evaluation_of(net, DEVICES["variation"], chips, images)
    seconds = measure.least(call, 1) / chips / images * 100
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"{chips:6} {images:7} {seconds:21.4f} {peak:7.0f}", flush=True)


def _of_compiling(chips=64, images=1024):
  """Of the programs of a Monte Carlo, traced and compiled."""
  net, images = network(_NETS[0]), images_of(images)
  mesh = sharding.evaluation_mesh(chips)
  for label, device in _COMPILED.items():
    setting = engine.Setting(*net, device)
    shared = engine.shared_variables(setting, images)
    before = time.process_time()
    engine.make_plan(setting, shared, images, chips, mesh, engine.FREE)
    seconds = time.process_time() - before
    print(f"{label:18} compiled in {seconds:5.1f} CPU s", flush=True)


def _of_products(chips=8, images=16):
  """Milliseconds a chip of ways to multiply by several chips' weights."""
  print(
    f"\n{'layer':14} {'vmap':>8} {'loop':>8} {'im2col':>8} {'planes':>8}   "
    f"[ms a chip, {images} images, {chips} chips]"
  )
  rng = np.random.default_rng(0)
  conv = functools.partial(binary.convolve, strides=1, padding=1)

  def im2col(x, w):
    columns = jax.lax.conv_general_dilated_patches(
      x, (3, 3), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    w = jnp.moveaxis(w, 2, 0).reshape(-1, w.shape[-1])
    return columns @ w

  def planes(x, p):
    return popcount.convolve(x, p, 1, 1)

  for size, channels in ((32, 16), (32, 80), (16, 112), (8, 216)):
    x = rng.integers(0, 2, (chips, images, size, size, channels))
    w = rng.integers(-1, 2, (chips, 3, 3, channels, channels))
    x, w = jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32)
    counted = jax.vmap(popcount.weight_planes)(w)
    ways = {
      "vmap": (jax.vmap(conv), x, w),
      "loop": (lambda x, w: jax.lax.map(lambda a: conv(*a), (x, w)), x, w),
      "im2col": (jax.vmap(im2col), x, w),
      "planes": (jax.vmap(planes), x, counted),
    }
    calls = {
      name: functools.partial(jax.jit(function), *operands)
      for name, (function, *operands) in ways.items()
    }
    times = measure.seconds(calls, 3, np.min)
    cells = " ".join(f"{1e3 * t / chips:8.3f}" for t in times.values())
    print(f"{f'{size}x{size}x{channels}':14} {cells}", flush=True)


def main() -> None:
  parser = measure.parser(__doc__)
  parser.add_argument("--chips", type=int, default=8)
  parser.add_argument("--most-chips", type=int, default=64, help="of scaling")
  parser.add_argument("--nets", nargs="+", choices=_NETS, default=_NETS)
  parser.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS)
  options = parser.parse_args()
  tuned = "MALLOC_MMAP_THRESHOLD_" in os.environ
  print(f"{measure.machine()}, {os.cpu_count()} cores")
  print(f"allocator: {'tuned' if tuned else 'default'}")
  if torch:
    print(f"(a) torch {torch.__version__}, {torch.get_num_threads()} threads")
  else:
    print("(a) torch is not installed")
  if "compiling" in options.parts:  # first: the others compile the same
    _of_compiling()
  if "scaling" in options.parts:  # memory is the greatest so far
    _of_scaling(options.most_chips)
  if "nets" in options.parts:
    _of_nets(options.nets, options.chips)
  if "products" in options.parts:
    _of_products()


if __name__ == "__main__":
  main()
