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
  (b)        aihwkit's inference tiles, if it is installed
  (c)        the floor: the multiply-adds as one float32 matrix product at the
             peak measured here, the best of jax, NumPy and shapes

Then: cost against the number of chips (with the process's memory) and of
images; and the ways to multiply by chips that the engine chooses from.
"""

import argparse
import functools
import os
import resource
import time

from hawis_jax import backend

backend.configure()

# ruff: noqa: E402
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import cost
from hawis_jax import crossbar
from hawis_jax.arithmetic import binary
from hawis_jax.arithmetic import popcount
from hawis_jax.networks import net_variables
from hawis_jax.networks import resnet
from hawis_jax.networks import width_vectors
from hawis_jax.robustness import monte_carlo

try:
  import torch
except ImportError:
  torch = None

_IMAGES = 100
_TILE = 64
_NETS = ("resnet20_1x", "resnet20_hawis_a")
_STUCK = dict(stuck_on=0.0175, stuck_off=0.0904)
_DEVICES = {
  "variation": crossbar.Device(**_STUCK, variation=0.5),
  "stuck": crossbar.Device(**_STUCK),
}


def _seconds(call, rounds=3):
  """The least of some rounds, after one that compiles."""
  call()
  times = []
  for _ in range(rounds):
    start = time.perf_counter()
    call()
    times.append(time.perf_counter() - start)
  return min(times)


def _images(count):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)


def _ours(module, net, device, chips, count=_IMAGES):
  """Evaluates some chips."""
  setting = monte_carlo.Setting(module, net, device)
  labels = np.zeros(count, np.int32)
  key = jax.random.key(0)

  def call():
    for _ in monte_carlo.classify(
      key, setting, _images(count), labels, range(chips)
    ):
      pass

  return call


def _peak():
  """Greatest float32 matrix product rate [FLOP/s]."""
  best = 0.0
  product = jax.jit(jnp.matmul)
  for m, k, n in ((4096, 1152, 2048), (4096, 4096, 4096), (25600, 1008, 112)):
    left, right = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
    on_device = jnp.asarray(left), jnp.asarray(right)
    for call in (
      lambda a=left, b=right: a @ b,
      lambda ab=on_device: product(*ab).block_until_ready(),
    ):
      best = max(best, 2 * m * k * n / _seconds(call, 7))
  return best


def _macs(vector):
  geometry = cost.cifar_geometry(20, (32, 32, 3), 32, 10, (_TILE, _TILE))
  return int(cost.network_cost(np.array(vector, np.int64), geometry).macs)


class _TorchNet:
  """Binary ResNet-20 on chips in plain PyTorch, forward only."""

  def __init__(self, net, gamma):
    self.gamma = gamma
    params, stats = net["params"], net["batch_stats"]

    def tensors(tree):
      if isinstance(tree, dict):
        return {k: tensors(v) for k, v in tree.items()}
      array = np.array(tree)
      if array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
      return torch.from_numpy(np.ascontiguousarray(array))

    self.params, self.stats = tensors(params), tensors(stats)

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
      if self.gamma:
        g = g * torch.exp(-self.gamma * torch.randn_like(g))
      draw = torch.rand_like(g)
      g = torch.where(draw < _STUCK["stuck_on"], on, g)
      arrays.append(torch.where(draw > 1 - _STUCK["stuck_off"], off, g))
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
    return torch.nn.functional.batch_norm(
      x,
      stats[name]["mean"],
      stats[name]["var"],
      scope[name]["scale"],
      scope[name]["bias"],
    )

  def __call__(self, images):
    levels = torch.arange(4, 256, 8).reshape(1, -1, 1, 1, 1)
    x = (images.unsqueeze(1) > levels).float().flatten(1, 2)
    p, s = self.params, self.stats
    x = self._norm("bn_stem", self._conv(p["stem"], x), p, s)
    for stage in (1, 2, 3):
      for block in range(3):
        name = f"stage{stage}_block{block}"
        scope, stats = p[name], s[name]
        stride = 2 if stage > 1 and block == 0 else 1
        y = self._conv(scope["conv1"], (x > 0.5).float(), stride)
        y = self._norm("bn1", y, scope, stats)
        y = self._conv(scope["conv2"], (y > 0.5).float())
        skip = x[:, : y.shape[1], ::stride, ::stride]
        pad = y.shape[1] - skip.shape[1]
        x = y + torch.nn.functional.pad(skip, (0, 0, 0, 0, 0, pad))
        x = self._norm("bn2", x, scope, stats)
    x = torch.relu(x).mean((2, 3))
    x = self._norm("bn_head", x, p, s)
    head = p["head"]["kernel"]
    scope = {"kernel": head.t().reshape(*head.t().shape, 1, 1)}
    return self._conv(scope, (x > 0.5).float()[..., None, None]).flatten(1)


def _torch_seconds(net, gamma):
  model = _TorchNet(net, gamma)
  images = torch.from_numpy(_images(_IMAGES).transpose(0, 3, 1, 2).copy())
  with torch.no_grad():
    return _seconds(lambda: model(images).argmax(1), 1)


def _check_torch(module, net):
  """The PyTorch net without defects is ours: the same logits."""
  stuck = dict(_STUCK)
  _STUCK.update(stuck_on=0.0, stuck_off=0.0)
  images = _images(4)
  with torch.no_grad():
    theirs = _TorchNet(net, 0.0)(
      torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    )
  _STUCK.update(stuck)
  ours = module.apply(net, module.encode(jnp.asarray(images)), train=False)
  np.testing.assert_allclose(theirs, ours, rtol=1e-2, atol=1e-2)


def _aihwkit_version():
  try:
    import aihwkit
  except ImportError:
    return None
  return aihwkit.__version__


def _main_table(peak, chips):
  print(
    f"\n{'net':18} {'defects':10} {'ours s':>8} {'(c) s':>7} {'of peak':>8} "
    f"{'(a) s':>8} {'(a)/ours':>9}"
  )
  for name in _NETS:
    vector = width_vectors.PRESETS[name]
    module = resnet.cifar_resnet(20, vector, 10)
    net = net_variables.init(module, jax.random.key(0), (32, 32, 3))
    if torch:
      _check_torch(module, net)
    for label, device in _DEVICES.items():
      ours = _seconds(_ours(module, net, device, chips)) / chips
      floor = 2 * _macs(vector) * _IMAGES / peak
      line = f"{name:18} {label:10} {ours:8.4f} {floor:7.4f} "
      line += f"{100 * floor / ours:7.0f}%"
      if torch:
        theirs = _torch_seconds(net, device.variation)
        line += f" {theirs:8.3f} {theirs / ours:9.1f}"
      print(line, flush=True)


def _scaling_table():
  vector = width_vectors.PRESETS[_NETS[0]]
  module = resnet.cifar_resnet(20, vector, 10)
  net = net_variables.init(module, jax.random.key(0), (32, 32, 3))
  print(f"{'chips':>6} {'images':>7} {'seconds a chip x 100':>21} {'MB':>7}")
  for chips, images in ((1, 512), (4, 512), (16, 512), (64, 512), (16, 2048)):
    call = _ours(module, net, _DEVICES["variation"], chips, images)
    seconds = _seconds(call, 1) / chips / images * 100
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"{chips:6} {images:7} {seconds:21.4f} {peak:7.0f}", flush=True)


def _product_table(chips=8, images=16):
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

  for size, channels in ((32, 16), (32, 80), (16, 112), (8, 216)):
    x = rng.integers(0, 2, (chips, images, size, size, channels))
    w = rng.integers(-1, 2, (chips, 3, 3, channels, channels))
    x, w = jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32)
    planes = jax.vmap(popcount.weight_planes)(w)
    ways = {
      "vmap": (jax.vmap(conv), w),
      "loop": (lambda x, w: jax.lax.map(lambda a: conv(*a), (x, w)), w),
      "im2col": (jax.vmap(im2col), w),
      "planes": (
        jax.vmap(lambda x, p: popcount.convolve(x, p, 1, 1)),
        planes,
      ),
    }
    cells = []
    for function, weights in ways.values():
      call = functools.partial(_finish, jax.jit(function), x, weights)
      cells.append(1e3 * _seconds(call) / chips)
    label = f"{size}x{size}x{channels}"
    print(f"{label:14} " + " ".join(f"{c:8.3f}" for c in cells), flush=True)


def _finish(function, *arguments):
  jax.block_until_ready(function(*arguments))


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--chips", type=int, default=8)
  options = parser.parse_args()
  peak = _peak()
  print(
    f"jax {jax.__version__}, {jax.devices()[0].device_kind}, "
    f"{os.cpu_count()} cores; float32 peak {peak / 1e9:.0f} GFLOP/s"
  )
  tuned = "MALLOC_MMAP_THRESHOLD_" in os.environ
  print(f"allocator: {'tuned' if tuned else 'default'}")
  if torch:
    print(f"(a) torch {torch.__version__}, {torch.get_num_threads()} threads")
  else:
    print("(a) torch is not installed")
  print(f"(b) aihwkit: {_aihwkit_version() or 'not installed'}")
  _scaling_table()  # first: memory is the greatest so far
  _main_table(peak, options.chips)
  _product_table()


if __name__ == "__main__":
  main()
