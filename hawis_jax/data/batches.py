"""Batches: shuffled and augmented for training, in order for evaluation.

Everything is NumPy on the host; images stay uint8 (networks encode them on the
device).

Axes: N batches, B images, H rows, W columns, C channels.
"""

from collections.abc import Iterator
import functools

import grain
import numpy as np

from hawis_jax import errors
from hawis_jax.data import augment
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
    augment: "none"; "flip_crop": mirrored with probability 1/2, padded with 0
      by an eighth of the height on all sides, and cropped at random; or
      "imagenet": a random part resized, mirrored with probability 1/2, its
      colours shifted.
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
  read = functools.partial(_read, source, augment, rows)
  # Grain shuffles and batches indices; the images of a batch are then read at
  # once, which costs half of what reading them item by item does.
  order = grain.MapDataset.range(len(source)).seed(seed).shuffle()
  indices = order.repeat(_EPOCHS).batch(batch_size, batch_fn=list)
  batches = indices.map(np.asarray).random_map(read)
  return _ahead(batches[start_step:], read_threads)


def _read(source, how, rows, indices, rng):
  """Returns these rows of a batch, augmented."""
  # Drawn for the whole batch, so that a row does not depend on the shards.
  if how == "imagenet":
    draws = augment.draw_crop_light(rng, len(indices), source.lighting)
    return source.read_crops(indices[rows], draws[rows])
  batch = source.read(indices[rows])
  if how == "flip_crop":
    draws = augment.draw_flip_crop(rng, len(indices), source.images.shape[0])
    batch["image"] = augment.flip_crop(batch["image"], draws[rows])
  return batch


def _check(source, batch_size, augment, shard):
  def refuse(field, got, allowed):
    raise errors.InputError(f"{field}: got {got}, allowed are {allowed}")

  process, processes = shard
  channels = source.images.shape[-1]
  if not 1 <= batch_size <= len(source):
    allowed = f"1 to {len(source)} (the images there are)"
    refuse("batch_size", batch_size, allowed)
  if augment not in AUGMENTATIONS:
    refuse("config.data.augment", f"'{augment}'", ", ".join(AUGMENTATIONS))
  if not 0 <= process < processes:
    got = f"process {process} of {processes}"
    refuse("shard", got, f"0 to {processes - 1}")
  if batch_size % processes:
    allowed = f"multiples of {processes} (the processes there are)"
    refuse("batch_size", batch_size, allowed)
  if augment == "imagenet" and not source.images.resize:
    got = "'imagenet' with config.data.image_size = 0"
    refuse("config.data.augment", got, "others, or an image_size > 0")
  if augment == "imagenet" and source.lighting and channels != 3:
    got = f"{source.lighting} for images of {channels} channels"
    refuse("config.data.lighting", got, "3 channels, or 0")


def _ahead(batches, read_threads):
  # Threads, not worker processes: Pillow decodes and resizes outside Python's
  # lock, so that they are faster where it matters, with large images
  # (benchmarks/input_pipeline.py).
  options = grain.ReadOptions(
    num_threads=read_threads, prefetch_buffer_size=2 * read_threads
  )
  return iter(batches.to_iter_dataset(options))


def evaluation_stream(
  source: sources.Source, batch_size: int, limit: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
  """Reads all images, or the first `limit`, once and in their order.

  Batches are `image` uint8 [B, H, W, C], `label` int32 [B] and `mask` bool [B]:
  False where the last batch is filled up (with copies of the last image). B may
  exceed the number of images.

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

  numbers = grain.MapDataset.range(-(-count // batch_size))
  return _ahead(numbers.map(read), source.images.read_threads)


def evaluation_batches(
  source: sources.Source, batch_size: int, limit: int | None = None
) -> dict[str, np.ndarray]:
  """Returns all batches of `evaluation_stream`, with a leading axis N."""
  batches = list(evaluation_stream(source, batch_size, limit))
  return {key: np.stack([b[key] for b in batches]) for key in batches[0]}
