"""Data: TFDS data sets in ArrayRecord files, without TensorFlow or a network.

`load` opens a data set and splits it, `train_batches` and `evaluation_batches`
read it. Everything is NumPy on the host; images stay uint8 (the thermometer
code is made on the device).

Axes: N batches, B images, H rows, W columns, C channels.
"""

from collections.abc import Iterator, Sequence
import concurrent.futures
import dataclasses
import difflib
import os
import pathlib
import re
import threading

import absl.logging
import grain
import ml_collections
import numpy as np
import tensorflow_datasets as tfds

from hawis_jax import digits
from hawis_jax import errors

AUGMENTATIONS = ("none", "flip_crop")

_KNOWN_NAMES = (digits.NAME, "cifar10", "cifar100", "imagenet2012")
_IN_MEMORY_BYTES = 1 << 30  # smaller sources are decoded once and kept
_DECODE_CHUNK = 1024  # images a thread decodes at a time
_PADDING = 4  # pixels, of "flip_crop"
_EPOCHS = 1 << 31  # without end; with a true one Grain overflows at batch 1

# TFDS advises to install OpenCV at every start; Pillow serves here.
absl.logging.get_absl_logger().addFilter(
  lambda record: "OpenCV is not installed" not in str(record.msg)
)


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
  """Labelled images by index: some records of one split. Threads may share it.

  A record costs about 250 us to read. A source in memory pays that once, for
  all its images at the first read (CIFAR-10: 12 s).

  Attributes:
    records: TFDS data source of the whole split.
    indices: int [B], the records that belong to this source.
    folder: where they are stored, for messages.
    in_memory: whether to decode all images at the first read and keep them.
    read_threads: threads that decode them. They help with large images; with
      small ones Pillow holds Python's lock.
  """

  records: Sequence[dict]
  indices: np.ndarray
  folder: pathlib.Path
  in_memory: bool = True
  read_threads: int = 2
  _decoded: dict = dataclasses.field(default_factory=dict, init=False)
  _lock: threading.Lock = dataclasses.field(
    default_factory=threading.Lock, init=False
  )

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    """Returns one `image`, uint8 [H, W, C], and its `label`, int32 []."""
    return {key: value[0] for key, value in self.read([index]).items()}

  def read(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """Returns `image` uint8 [B, H, W, C] and `label` int32 [B].

    Args:
      indices: int [B], which images of this source.

    Raises:
      InputError: a record is damaged or has no label.
    """
    if not self.in_memory:
      return self._decode(self.indices[indices])
    with self._lock:
      if not self._decoded:
        self._decoded.update(self._decode_all())
    return {key: value[indices] for key, value in self._decoded.items()}

  def _decode_all(self):
    starts = range(_DECODE_CHUNK, len(self), _DECODE_CHUNK)
    with concurrent.futures.ThreadPoolExecutor(max(1, self.read_threads)) as p:
      parts = list(p.map(self._decode, np.split(self.indices, starts)))
    return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}

  def _decode(self, indices):
    try:
      items = self.records.__getitems__(indices.tolist())
    except Exception as error:  # ArrayRecord, protobuf, Pillow have their own
      raise _unreadable(self.folder, error) from error
    labels = np.array([item["label"] for item in items], np.int32)
    if np.any(labels < 0):
      raise _unfit(self.folder, "images without a label", "labelled images")
    return {
      "image": np.stack([item["image"] for item in items]),
      "label": labels,
    }


@dataclasses.dataclass(frozen=True)
class Splits:
  """A data set, ready to be read.

  Attributes:
    name: its TFDS name.
    train: what weights are learnt from; without the validation images.
    validation: the images held out of `train`, for pretraining and search.
    test: for the final figures only.
    image_shape: (H, W, C).
    num_classes: labels are 0 .. num_classes - 1.
  """

  name: str
  train: Source
  validation: Source
  test: Source
  image_shape: tuple[int, int, int]
  num_classes: int


def load(data_config: ml_collections.ConfigDict) -> Splits:
  """Opens a data set and holds the validation images out of its `train`.

  `digits` is prepared if need be; any other one must be there, as
  `<data_dir>/<name>/<version>` in ArrayRecord files: nothing is downloaded.
  Which images are held out depends on nothing but the size of `train`.

  Args:
    data_config: the section `data` of the configuration.

  Raises:
    InputError: no such data set, not one of labelled uint8 images of one size,
      damaged, or too small for the validation images.
  """
  folder = _find(data_config.name, data_config.data_dir)
  try:
    builder = tfds.builder_from_directory(folder)
  except Exception as error:  # JSON, protobuf and TFDS have their own
    raise _unreadable(folder, error) from error
  shape, num_classes = _check(builder.info, folder)
  records = builder.as_data_source()

  def source(split, indices):
    in_memory = len(indices) * np.prod(shape) < _IN_MEMORY_BYTES
    threads = data_config.read_threads
    return Source(records[split], indices, folder, bool(in_memory), threads)

  for split in ("train", "test"):  # the last record of every file: all whole?
    ends = np.cumsum([n for n in builder.info.splits[split].shard_lengths if n])
    source(split, ends - 1).read(range(len(ends)))
  count, held_out = len(records["train"]), data_config.validation_images
  if not 0 <= held_out < count:
    raise errors.InputError(
      f"config.data.validation_images: got {held_out}, allowed are 0 to"
      f" {count - 1} (`train` of {data_config.name} has {count} images)"
    )
  # RandomState: a stream that no version of NumPy changes. The order is kept:
  # the first so many images are then a random sample even of sorted files.
  order = np.random.RandomState(0).permutation(count)
  return Splits(
    name=data_config.name,
    train=source("train", order[held_out:]),
    validation=source("train", order[:held_out]),
    test=source("test", np.arange(len(records["test"]))),
    image_shape=shape,
    num_classes=num_classes,
  )


def _find(name, data_dir):
  """Returns the folder of the highest version of `name` that is prepared."""
  root = pathlib.Path(
    data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  ).expanduser()
  if name == digits.NAME:
    digits.prepare(root)
  versions = {
    tuple(map(int, re.findall(r"\d+", file.parent.name))): file.parent
    for file in (root / name).glob("[0-9]*/dataset_info.json")
  }
  if versions:
    return versions[max(versions)]
  found = {  # name or name/config
    str(file.parent.parent.relative_to(root))
    for names in ("[!.]*", "[!.]*/*")
    for file in root.glob(f"{names}/[0-9]*/dataset_info.json")
  }
  there = ", ".join(sorted(found)) or "no data set"
  if name in _KNOWN_NAMES:
    raise errors.InputError(
      f"config.data.data_dir: no {name} in {root}, looked for"
      f" {root / name}/<version>/dataset_info.json, found {there};"
      " prepare it there first, nothing is downloaded"
    )
  close = difflib.get_close_matches(name.lower(), {*found, *_KNOWN_NAMES}, 1)
  hint = f"; did you mean '{close[0]}'?" if close else ""
  raise errors.InputError(
    f"config.data.name: got '{name}', allowed are '{digits.NAME}' and what"
    f" {root} holds: {there}{hint}"
  )


def _check(info, folder):
  """Returns (image_shape, num_classes) of a data set that serves, or raises."""
  if "array_record" not in {f.value for f in info.available_file_formats()}:
    raise _unfit(folder, f"{info.file_format.value} files", "array_record")
  for split in ("train", "test"):
    if split not in info.splits or not info.splits[split].num_examples:
      raise _unfit(folder, f"no images '{split}'", "'train' and 'test'")
  features = info.features
  for name in ("image", "label"):
    if name not in getattr(features, "keys", tuple)():
      raise _unfit(folder, f"no feature '{name}'", "'image' and 'label'")
  image, label = features["image"], features["label"]
  if image.np_dtype != np.uint8 or len(image.shape) != 3 or None in image.shape:
    allowed = "uint8 (height, width, channels), one size for all images"
    raise _unfit(folder, f"image {image}", allowed)
  if not getattr(label, "num_classes", None):
    raise _unfit(folder, f"label {label}", "a ClassLabel")
  return tuple(image.shape), label.num_classes


def _unfit(folder, got, allowed):
  message = f"config.data.name: {folder} has {got}, allowed is {allowed}"
  return errors.InputError(" ".join(message.split()))


def _unreadable(folder, error):
  reason = (str(error).strip() or type(error).__name__).splitlines()[0]
  return errors.InputError(
    f"config.data.data_dir: cannot read {folder} ({reason}), allowed are whole"
    " TFDS array_record files; prepare it again"
  )


def train_batches(
  source: Source,
  *,
  seed: int,
  batch_size: int,
  augment: str = "none",
  start_step: int = 0,
  read_threads: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
  """Returns shuffled batches without end, every epoch in a new order.

  Batch k is a pure function of (seed, k): a run that resumes at step k asks for
  `start_step=k` and sees what it would have seen. All batches are full; one
  may hold the end of an epoch and the beginning of the next.

  Args:
    source: the images.
    seed: of order and augmentation; not negative.
    batch_size: B, at most the number of images.
    augment: "none", or "flip_crop": mirrored with probability 1/2, padded with
      4 pixels of 0 on all sides, and cropped at random.
    start_step: k of the first batch.
    read_threads: threads that read ahead; 0 reads when asked.

  Returns:
    An iterator of `image` uint8 [B, H, W, C] and `label` int32 [B].

  Raises:
    InputError: `batch_size` or `augment` is none of these.
  """
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
  # Grain shuffles and batches indices; the images of a batch are then read at
  # once, which costs half of what reading them item by item does.
  order = grain.MapDataset.range(len(source)).seed(seed).shuffle()
  indices = order.repeat(_EPOCHS).batch(batch_size, batch_fn=np.asarray)
  batches = indices.map(source.read)
  if augment == "flip_crop":
    batches = batches.random_map(_flip_crop)
  options = grain.ReadOptions(
    num_threads=read_threads, prefetch_buffer_size=2 * read_threads
  )
  return iter(batches[start_step:].to_iter_dataset(options))


def _flip_crop(batch, rng):
  images = batch["image"]
  count, height, width, _ = images.shape
  border = (_PADDING, _PADDING)
  padded = np.pad(images, ((0, 0), border, border, (0, 0)))
  corners = rng.integers(0, 2 * _PADDING + 1, (count, 2))
  strides = rng.choice((1, -1), count)  # -1: columns from right to left
  crops = [
    image[top : top + height, left : left + width][:, ::stride]
    for image, (top, left), stride in zip(padded, corners, strides, strict=True)
  ]
  return {**batch, "image": np.stack(crops)}


def evaluation_batches(
  source: Source, batch_size: int, limit: int | None = None
) -> dict[str, np.ndarray]:
  """Reads all images once, in their order, as batches of one size.

  Args:
    source: the images.
    batch_size: B; may exceed the number of images.
    limit: how many to read, the first ones; None reads all.

  Returns:
    `image` uint8 [N, B, H, W, C], `label` int32 [N, B] and `mask` bool [N, B]:
    False where the last batch is filled up (with copies of the last image).

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
  rows = np.arange(-(-count // batch_size) * batch_size)
  batches = source.read(np.minimum(rows, count - 1)) | {"mask": rows < count}
  return {
    key: value.reshape(-1, batch_size, *value.shape[1:])
    for key, value in batches.items()
  }
