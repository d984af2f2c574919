"""From stored records to arrays: images decoded on demand, or once and kept.

Axes: B images, H rows, W columns, C channels.
"""

from collections.abc import Callable, Mapping, Sequence
import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import hashlib
import io
import logging
import math
import pathlib
import threading
from typing import Any

import numpy as np
from PIL import Image
from PIL import ImageOps
from PIL import UnidentifiedImageError

from hawis_jax import errors
from hawis_jax.data import augment

# No others: Pillow would run a program for some.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP")
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's, by C

_CHUNK = 1024  # records read at a time, or decoded by a thread, to keep them
_DIGEST_SAMPLE = 1024  # records of a set that is too large for all
# About what a digest takes: of a record [s], of a byte [s]; and may take [s].
_RECORD_TIME, _BYTE_TIME, _DIGEST_TIME = 30e-6, 2e-9, 2.0
_MOST_SKIPPED = 100  # damaged images in a row
_MOST_PIXELS = 1 << 26  # of an image; some files of 100 KB have more

_log = logging.getLogger(__name__)


class DamagedError(errors.InputError):
  """A record can't be read, or its image not be decoded."""


@dataclasses.dataclass(frozen=True)
class Stored:
  """A data set as it is stored."""

  folder: pathlib.Path
  version: str  # "" if it has none
  train: Sequence[Mapping[str, Any]]  # see `Images.records`
  test: Sequence[Mapping[str, Any]]
  # (H, W, C), of the first image where they may differ in size; H and W are
  # None where even that is not known.
  image_shape: tuple[int | None, int | None, int]
  num_classes: int  # labels are 0 .. num_classes - 1


@dataclasses.dataclass(eq=False)
class Images:
  """The labelled images of one split, by record. Threads may share it."""

  # `__getitems__([i, ...])` returns a list of mappings: `image` (encoded bytes,
  # or uint8 [H, W, C]), `label` and, for messages, `file_name` or `id`.
  records: Sequence[Mapping[str, Any]]
  folder: pathlib.Path  # for messages
  shape: tuple[int, int, int]  # (H, W, C) of what `read` returns
  # Length of the short side before the central H = W are cut out [pixels]; 0:
  # images are as stored.
  resize: int = 0
  # Whether `read` decodes all images at once and keeps them: else a record of
  # CIFAR-10 costs 200 us each time.
  in_memory: bool = True
  read_threads: int = 2  # that decode
  skip_damaged: bool = False  # damaged images matter to those who ask for them

  def __post_init__(self):
    self._damaged: dict[int, DamagedError] = {}
    self._kept: dict[str, np.ndarray] = {}
    self._lock = threading.Lock()

  def read(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
    """Returns `image` uint8 [B, H, W, C] and `label` int32 [B] of records.

    Raises:
      InputError: a record is damaged, has no label or has another size.
    """
    if not self.in_memory:
      return self.decode(numbers)
    with self._lock:
      self._kept = self._kept or self._decode_all()
    # Black images stand in for the damaged ones: see `_decode_chunk`.
    if self._damaged:
      for number in self._damaged.keys() & set(np.asarray(numbers).tolist()):
        raise self._damaged[number]
    return {key: value[numbers] for key, value in self._kept.items()}

  def decode(
    self,
    numbers: np.ndarray,
    views: Sequence[Callable[[Image.Image], np.ndarray]] | None = None,
  ) -> dict[str, np.ndarray]:
    """Reads records anew; returns and raises what `read` does.

    The B views make uint8 [H, W, C] of an image of any size.
    """
    records = self.fetch(numbers)
    views = [None] * len(numbers) if views is None else views
    images = [
      self._decode(number, record, view)
      for number, record, view in zip(numbers, records, views, strict=True)
    ]
    labels = np.array([record["label"] for record in records], np.int32)
    if np.any(labels < 0):
      raise unfit(self.folder, "images without a label", "labelled images")
    return {"image": np.stack(images), "label": labels}

  def is_damaged(self, number: int) -> bool:
    """Returns whether a record can't be read; logs those that can't, once."""
    if number not in self._damaged:
      try:
        self.decode(np.array([number]))
      except DamagedError as error:
        if self._damaged.setdefault(number, error) is error:  # no other thread
          _log.warning("skipping a damaged image: %s", error)
    return number in self._damaged

  def fetch(self, numbers: np.ndarray) -> list[Mapping[str, Any]]:
    """Returns records with their images still encoded, or raises InputError."""
    try:
      return self.records.__getitems__(np.asarray(numbers).tolist())
    except Exception as error:  # ArrayRecord and protobuf have their own
      raise unreadable(self.folder, error) from error

  def digest(self) -> str:
    """Returns the SHA-256 of all images as they are stored, and their labels.

    Of a set that would take more than 2 s or so it is that of 1024 records, as
    evenly spaced as can be, and says so.

    Raises:
      InputError: a record can't be read, and is none that may be skipped.
    """
    total = len(self.records)
    few = self._spaced(64)
    sizes = [len(_content(record)) for record in self._present(few)]
    mean = sum(sizes) / max(len(sizes), 1)
    whole = total * (_RECORD_TIME + mean * _BYTE_TIME) < _DIGEST_TIME
    numbers = np.arange(total) if whole else self._spaced(_DIGEST_SAMPLE)
    sha256 = hashlib.sha256()
    for chunk in _chunks(numbers):
      for record in self._present(chunk):
        sha256.update(_content(record))
    sampled = "" if whole else f" (sampled: {len(numbers)} of {total} images)"
    return sha256.hexdigest() + sampled

  def stored_size(self) -> tuple[int, int]:
    """Returns (H, W) of the first image as it is stored [pixels].

    Raises:
      InputError: it is damaged, or so are many where they may be skipped.
    """
    last = min(len(self.records), _MOST_SKIPPED) - 1
    for number in range(last + 1):
      try:
        record = self.fetch([number])[0]
        with self._errors(number, record):
          width, height = open_image(record["image"], self.shape[-1]).size
        break
      except DamagedError:
        if not self.skip_damaged or number == last:
          raise
    return height, width

  def _spaced(self, most):
    """Returns the numbers of `most` records, as evenly spaced as can be."""
    total = len(self.records)
    return np.unique(np.linspace(0, total - 1, min(most, total), dtype=int))

  def _present(self, numbers):
    """Returns what `fetch` does, without records that may be skipped."""
    try:
      return self.fetch(numbers)
    except DamagedError:
      if not self.skip_damaged:
        raise
    return self.fetch([n for n in numbers if not self.is_damaged(int(n))])

  def _decode_all(self):
    chunks = _chunks(np.arange(len(self.records)))
    with concurrent.futures.ThreadPoolExecutor(max(1, self.read_threads)) as p:
      parts = list(p.map(self._decode_chunk, chunks))
    return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}

  def _decode_chunk(self, numbers):
    """Decodes; black images stand in for damaged ones that may be skipped."""
    try:
      return self.decode(numbers)
    except DamagedError:
      if not self.skip_damaged:
        raise
    good = ~np.array([self.is_damaged(number) for number in numbers.tolist()])
    images = np.zeros((len(numbers), *self.shape), np.uint8)
    labels = np.zeros(len(numbers), np.int32)
    if good.any():
      decoded = self.decode(numbers[good])
      images[good], labels[good] = decoded["image"], decoded["label"]
    return {"image": images, "label": labels}

  def _decode(self, number, record, view):
    image = record["image"]
    # Arrays as they are stored need no Pillow.
    if not isinstance(image, np.ndarray) or view or self.resize:
      with self._errors(number, record):
        image = (view or self._view)(open_image(image, self.shape[-1]))
    if image.shape != self.shape:
      raise errors.InputError(
        f"config.data.image_size: got 0 and {self._name(number, record)} with"
        f" {image.shape}, allowed is one size (here {self.shape}) or an"
        " image_size to cut out"
      )
    return image

  def _view(self, image):
    if not self.resize:
      return augment.to_array(image)
    return augment.centre_crop(image, self.resize, self.shape[0])

  @contextlib.contextmanager
  def _errors(self, number, record):
    try:
      yield
    except Exception as error:  # Pillow has many, and damage has more
      raise unreadable(self._name(number, record), error) from error

  def _name(self, number, record):
    name = record.get("file_name", record.get("id", ""))
    name = name.decode() if isinstance(name, bytes) else name
    return f"{self.folder}, record {number}{f' ({name})' if name else ''}"


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
  """Some of the labelled images of a split, in an order of their own."""

  images: Images  # of the whole split
  indices: np.ndarray  # int [B], the records that belong to this source
  lighting: float = 0.0  # deviation of the colour noise of "imagenet"
  skip_damaged: bool = False  # the next image stands in for a damaged one

  def __len__(self) -> int:
    return len(self.indices)

  def read(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """Returns what `Images.read` does, of B images of this source."""
    return self._past_damaged(self.images.read, indices)

  def read_crops(
    self, indices: Sequence[int], draws: np.ndarray
  ) -> dict[str, np.ndarray]:
    """Returns what `read` does, in the views of `augment.crop_light`."""
    size, crop = self.images.shape[0], augment.crop_light
    views = [functools.partial(crop, size=size, draw=draw) for draw in draws]
    return self._past_damaged(lambda n: self.images.decode(n, views), indices)

  def _past_damaged(self, read, indices):
    """Calls `read` with the records of these images, or of their stand-ins."""
    try:
      return read(self.indices[indices])
    except DamagedError:
      if not self.skip_damaged:
        raise
    return read(np.array([self._whole(index) for index in indices]))

  def _whole(self, index):
    """Returns the first record from an image on that is not damaged."""
    for offset in range(_MOST_SKIPPED):
      number = int(self.indices[(index + offset) % len(self)])
      if not self.images.is_damaged(number):
        return number
    raise errors.InputError(
      f"config.data.damaged: got 'skip' and {_MOST_SKIPPED} damaged images in"
      f" a row in {self.images.folder}, allowed are fewer; prepare it again"
    )


def open_image(image: bytes | np.ndarray, channels: int) -> Image.Image:
  """Opens encoded bytes or uint8 [H, W, C], as an image of C channels.

  Grey pixels of 16 bits become the nearest of 8. EXIF turns images upright, as
  torchvision does not; alpha that C does not ask for is dropped, as there.

  Raises:
    ValueError: the pixels are floating-point, whose white is not known, or more
      than 2^26; or what Pillow raises.
  """
  if isinstance(image, np.ndarray):
    return Image.fromarray(image[..., 0] if channels == 1 else image)
  opened = Image.open(io.BytesIO(image), formats=FORMATS)
  if math.prod(opened.size) > _MOST_PIXELS:
    raise ValueError(f"{opened.size} pixels, more than {_MOST_PIXELS:,}")
  opened.load()  # raises where pixels are damaged
  with contextlib.suppress(Exception):  # of a damaged EXIF block
    ImageOps.exif_transpose(opened, in_place=True)
  if opened.mode == "F":
    raise ValueError("floating-point pixels")
  if opened.mode.startswith("I"):  # 16 bits; Pillow would cut off at 255
    grey = (np.asarray(opened).astype(np.int32) + 128) // 257
    opened = Image.fromarray(grey.astype(np.uint8))
  if opened.mode == "P":  # Pillow warns where a palette has transparent colours
    opened = opened.convert("RGBA")
  return opened.convert(MODES[channels])


def _chunks(numbers):
  return np.split(numbers, range(_CHUNK, len(numbers), _CHUNK))


def _content(record):
  """Returns what tells an image from others, and its label, as bytes."""
  image, shape = record["image"], ""
  if not isinstance(image, bytes):
    shape, image = np.shape(image), np.asarray(image).tobytes()
  return f"{record['label']} {shape} {len(image)} ".encode() + image


def unfit(folder: pathlib.Path, got: str, allowed: str) -> errors.InputError:
  """Returns the error of a data set that is whole and does not serve."""
  message = f"config.data.name: {folder} has {got}, allowed is {allowed}"
  return errors.InputError(" ".join(message.split()))


def unreadable(
  place: pathlib.Path | str, error: Exception
) -> errors.InputError:
  """Returns the error of files that can't be read; `place` names them.

  It is a `DamagedError`, but where the machine failed: an image that is skipped
  for that would not be skipped the next time.
  """
  reason = (str(error).strip() or type(error).__name__).splitlines()[0]
  if isinstance(error, UnidentifiedImageError):  # its text is an address
    reason = "not an image"
  # A missing file is damage too, and errors of Pillow have no number.
  harmless = (None, errno.ENOENT)
  system = isinstance(error, OSError) and error.errno not in harmless
  if system or isinstance(error, MemoryError):
    return errors.InputError(
      f"config.data.data_dir: cannot read {place} ({reason}), needed is a"
      " machine that can; start again there"
    )
  return DamagedError(
    f"config.data.data_dir: cannot read {place} ({reason}), allowed are whole"
    f" array_record and image files ({', '.join(FORMATS)}); prepare it again"
  )
