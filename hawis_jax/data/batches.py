"""Batches: shuffled and augmented for training, in order for evaluation.

Everything is NumPy on the host; images stay uint8 (networks encode them on the
device).

Axes: N batches, B images, H rows, W columns, C channels.
"""

from collections.abc import Iterator

import grain
import numpy as np

from hawis_jax import errors
from hawis_jax.data import augment as augment_lib
from hawis_jax.data import sources

AUGMENTATIONS = ("none", "flip_crop", "imagenet")

_EPOCHS = 1 << 31  # without end; with a true one Grain overflows at batch 1


def train_batches(
  source: sources.Source,
  *,
  seed: int,
  batch_size: int,
  augment: str = "none",
  start_step: int = 0,
  read_threads: int = 2,
  shard: tuple[int, int] = (0, 1),
) -> Iterator[dict[str, np.ndarray]]:
  """Returns shuffled batches without end, every epoch in a new order.

  Batch k is a pure function of (seed, k): a run that resumes at step k asks for
  `start_step=k` and sees what it would have seen. All batches are full; one
  may hold the end of an epoch and the beginning of the next.

  Args:
    source: the images.
    seed: of order and augmentation; not negative.
    batch_size: B of all processes together, at most the number of images.
    augment: "none"; "flip_crop": mirrored with probability 1/2, padded with 4
      pixels of 0 on all sides, and cropped at random; or "imagenet": a random
      part resized, mirrored with probability 1/2, its colours shifted.
    start_step: k of the first batch.
    read_threads: threads that read ahead; 0 reads when asked.
    shard: (p, n): of n processes this is number p. It gets the rows
      [p B / n, (p + 1) B / n) of every batch, and reads no others.

  Returns:
    An iterator of `image` uint8 [B / n, H, W, C] and `label` int32 [B / n].

  Raises:
    InputError: `batch_size`, `augment` or `shard` is none of these, or does not
      suit the images.
  """
  _check(source, batch_size, augment, shard)
  process, processes = shard
  share = batch_size // processes
  rows = slice(process * share, (process + 1) * share)

  def read(indices, rng):
    # Drawn for the whole batch, so that a row does not depend on the shards.
    if augment == "imagenet":
      draws = augment_lib.draw_crop_light(rng, batch_size, source.lighting)
      part = augment_lib.CropLight(*(values[rows] for values in draws))
      return source.read_crops(indices[rows], part)
    batch = source.read(indices[rows])
    if augment == "flip_crop":
      draws = augment_lib.draw_flip_crop(rng, batch_size)
      part = augment_lib.FlipCrop(*(values[rows] for values in draws))
      batch["image"] = augment_lib.flip_crop(batch["image"], part)
    return batch

  # Grain shuffles and batches indices; the images of a batch are then read at
  # once, which costs half of what reading them item by item does.
  order = grain.MapDataset.range(len(source)).seed(seed).shuffle()
  indices = order.repeat(_EPOCHS).batch(batch_size, batch_fn=list)
  batches = indices.map(np.asarray).random_map(read)
  return _ahead(batches[start_step:], read_threads)


def _check(source, batch_size, augment, shard):
  if not 1 <= batch_size <= len(source):
    raise errors.InputError(
      f"batch_size: got {batch_size}, allowed are 1 to {len(source)}"
      " (the images there are)"
    )
  if augment not in AUGMENTATIONS:
    raise errors.InputError(
      f"config.data.augment: got '{augment}', allowed are"
      f" {', '.join(AUGMENTATIONS)}"
    )
  process, processes = shard
  if not 0 <= process < processes:
    raise errors.InputError(
      f"shard: got process {process} of {processes}, allowed are 0 to"
      f" {processes - 1}"
    )
  if batch_size % processes:
    raise errors.InputError(
      f"batch_size: got {batch_size}, allowed are multiples of {processes}"
      " (the processes there are)"
    )
  if augment == "imagenet" and not source.images.resize:
    raise errors.InputError(
      "config.data.augment: got 'imagenet' with config.data.image_size = 0,"
      " allowed is an image_size > 0"
    )
  channels = source.images.shape[-1]
  if augment == "imagenet" and source.lighting and channels != 3:
    raise errors.InputError(
      f"config.data.lighting: got {source.lighting} for images of {channels}"
      " channels, allowed are 3 channels, or 0"
    )


def _ahead(batches, read_threads):
  """Returns an iterator of a Grain data set that threads read ahead."""
  # Threads, not worker processes: Pillow decodes and resizes outside Python's
  # lock, so that they are faster where it matters, with large images
  # (benchmarks/input_pipeline.py).
  options = grain.ReadOptions(
    num_threads=read_threads, prefetch_buffer_size=2 * read_threads
  )
  return iter(batches.to_iter_dataset(options))


def evaluation_stream(
  source: sources.Source,
  batch_size: int,
  limit: int | None = None,
  read_threads: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
  """Reads all images once, in their order, in batches of one size.

  Args:
    source: the images.
    batch_size: B; may exceed the number of images.
    limit: how many to read, the first ones; None reads all.
    read_threads: threads that read ahead; None takes the source's.

  Returns:
    An iterator of `image` uint8 [B, H, W, C], `label` int32 [B] and `mask` bool
    [B]: False where the last batch is filled up (with copies of the last
    image).

  Raises:
    InputError: there are no images, or fewer than `limit`.
  """
  count = len(source) if limit is None else limit
  if not 1 <= count <= len(source):
    raise errors.InputError(
      f"evaluation images: got {count}, allowed are 1 to {len(source)}"
    )
  if batch_size < 1:
    raise errors.InputError(f"batch_size: got {batch_size}, allowed is >= 1")

  def read(number):
    rows = np.arange(number * batch_size, (number + 1) * batch_size)
    mask = rows < count
    return source.read(np.minimum(rows, count - 1)) | {"mask": mask}

  if read_threads is None:
    read_threads = source.images.read_threads
  numbers = grain.MapDataset.range(-(-count // batch_size))
  return _ahead(numbers.map(read), read_threads)


def evaluation_batches(
  source: sources.Source, batch_size: int, limit: int | None = None
) -> dict[str, np.ndarray]:
  """Returns all batches of `evaluation_stream`, with a leading axis N.

  Args:
    source: the images.
    batch_size: B; may exceed the number of images.
    limit: how many to read, the first ones; None reads all.

  Returns:
    `image` uint8 [N, B, H, W, C], `label` int32 [N, B] and `mask` bool [N, B].

  Raises:
    InputError: there are no images, or fewer than `limit`.
  """
  batches = list(evaluation_stream(source, batch_size, limit))
  return {key: np.stack([b[key] for b in batches]) for key in batches[0]}
