"""Input pipelines: images/s of one thread, threads and processes; time waited.

python benchmarks/input_pipeline.py

CIFAR-like: 32x32 in memory, flip_crop, batches of 128. ImageNet-like: JPEGs of
500x375 in memory, random resized crop to 224, flip, lighting, batches of 64.
The best of three rounds in turn; "a core" is that of threads by CPU time. Then
a training step on batches as they come, against one on a constant batch: here
both share the cores, and the step pays for the decoding; beside an accelerator
only waiting costs.
"""

import functools
import io
import itertools
import os
import pathlib
import time

from absl import flags
import grain
import jax
import jax.numpy as jnp
import measure
import numpy as np
from PIL import Image

from hawis_jax import data
from hawis_jax.data import batches

_CORES = len(os.sched_getaffinity(0))
# name: (images a batch, augmentation, batches measured)
_SETS = {
  "CIFAR-like": (128, "flip_crop", 600),
  "ImageNet-like": (64, "imagenet", 16),
}
_WARM_UP = 6  # batches, more than are read ahead


class _Records:
  """Images in memory, each of them many times."""

  def __init__(self, images):
    self.images = images

  def __len__(self):
    return 10_000

  def __getitems__(self, numbers):
    images = self.images
    return [
      {"image": images[i % len(images)], "label": i % 10} for i in numbers
    ]


@functools.cache  # in a worker process once, too
def _source(name):
  rng = np.random.default_rng(0)
  path = pathlib.Path(name)
  if name == "CIFAR-like":
    images = rng.integers(0, 256, (1000, 32, 32, 3), np.uint8)
    kept = data.Images(_Records(images), path, (32, 32, 3))
  else:
    jpegs = [_jpeg(rng) for _ in range(64)]
    kept = data.Images(
      _Records(jpegs), path, (224, 224, 3), resize=256, in_memory=False
    )
  return data.Source(kept, np.arange(10_000), lighting=0.1)


def _jpeg(rng):
  """Smooth colours and some noise: about 70 kB, as ImageNet's are 110 kB."""
  smooth = Image.fromarray(rng.integers(0, 256, (31, 42, 3), np.uint8))
  pixels = np.asarray(smooth.resize((500, 375), Image.Resampling.BICUBIC))
  pixels = pixels + rng.integers(-12, 13, pixels.shape)
  file = io.BytesIO()
  Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
    file, "JPEG", quality=90
  )
  return file.getvalue()


def _read(name, indices, rng):
  """What `train_batches` does, for worker processes."""
  how = _SETS[name][1]
  return batches._read(_source(name), how, slice(None), indices, rng)


def _threads(name, count):
  return data.train_batches(
    _source(name),
    seed=0,
    batch_size=_SETS[name][0],
    augment=_SETS[name][1],
    read_threads=count,
  )


def _processes(name, count):
  order = grain.MapDataset.range(10_000).seed(0).shuffle().repeat(1 << 20)
  rows = order.batch(_SETS[name][0], batch_fn=list).map(np.asarray)
  read = rows.random_map(functools.partial(_read, name))
  reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
  workers = grain.MultiprocessingOptions(num_workers=count)
  return iter(read.to_iter_dataset(reading).mp_prefetch(workers))


def _rates(name, stream, share):
  """Returns images a second, and a second of one core of this process."""
  size, _, count = _SETS[name]
  count = max(1, int(share * count))
  for _ in itertools.islice(stream, _WARM_UP):
    pass
  start, busy = time.perf_counter(), time.process_time()
  for _ in itertools.islice(stream, count):
    pass
  images, end = count * size, time.perf_counter()
  return images / (end - start), images / (time.process_time() - busy)


@jax.jit
def _step(kernels, images):
  """A gradient step of three convolutions."""

  def loss(kernels):
    x = images / 255.0
    for kernel in kernels:
      dimensions = ("NHWC", "HWIO", "NHWC")
      x = jax.nn.relu(
        jax.lax.conv_general_dilated(
          x, kernel, (4, 4), "SAME", dimension_numbers=dimensions
        )
      )
    return jnp.mean(x)

  gradients = jax.grad(loss)(kernels)
  return jax.tree.map(lambda k, g: k - 1e-3 * g, kernels, gradients)


def _wait(name, steps):
  """Returns seconds a step: (constant batch, pipeline, of it waited)."""
  keys = jax.random.split(jax.random.key(0), 3)
  channels = (3, 32, 64, 128)
  kernels = [
    0.1 * jax.random.normal(key, (3, 3, *pair))
    for key, pair in zip(keys, itertools.pairwise(channels), strict=True)
  ]
  stream = _threads(name, _CORES)
  constant = next(stream)["image"]
  jax.block_until_ready(_step(kernels, constant))
  seconds = []
  for _ in range(steps):  # in turn
    start = time.perf_counter()
    jax.block_until_ready(_step(kernels, constant))
    asked = time.perf_counter()
    batch = next(stream)["image"]
    got = time.perf_counter()
    jax.block_until_ready(_step(kernels, batch))
    seconds.append((asked - start, time.perf_counter() - asked, got - asked))
  return np.median(seconds, axis=0)


def main() -> None:
  """Prints the table and the waiting."""
  parser = measure.parser(__doc__)
  parser.add_argument("--sets", nargs="+", choices=_SETS, default=[*_SETS])
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--share", type=float, default=1.0, help="of batches")
  parser.add_argument("--steps", type=int, default=12)
  options = parser.parse_args()
  flags.FLAGS.mark_as_parsed()  # Grain's worker processes ask for it
  heads = ("1 thread", "threads", "processes", "a core")
  print(
    f"{'images/s':14}", *(f"{head:>9}" for head in heads), f"  {_CORES} cores"
  )
  for name in options.sets:
    readers = (_threads, 1), (_threads, _CORES), (_processes, _CORES)
    pipelines = [read(name, count) for read, count in readers]
    best = np.max(
      [
        [_rates(name, p, options.share) for p in pipelines]
        for _ in range(options.rounds)
      ],
      axis=0,
    )  # [pipelines, 2]
    rates = [*best[:, 0], best[1, 1]]
    print(f"{name:14} " + " ".join(f"{rate:9,.0f}" for rate in rates))
  heads = ("constant", "pipeline", "ratio", "waiting")
  print(f"{'ms a step':14}", *(f"{head:>9}" for head in heads))
  for name in options.sets:
    constant, pipeline, waited = _wait(name, options.steps)
    print(
      f"{name:14} {1e3 * constant:9.1f} {1e3 * pipeline:9.1f}"
      f" {pipeline / constant:9.2f} {100 * waited / pipeline:7.1f} %"
    )


if __name__ == "__main__":
  main()
