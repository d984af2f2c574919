"""Augmentation: pure functions of images and of the numbers drawn for them.

The draws of a batch are made at once and their count depends on nothing but B,
so that the part of a batch can be made without the rest.

Axes: B images, T tries, H rows, W columns, C channels.
"""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

_PADDING = 4  # pixels, of `flip_crop`
_TRIES = 10  # boxes tried before `crop_box` takes the centre
_AREA = (0.08, 1.0)  # share of the image
_ASPECT = (3 / 4, 4 / 3)  # width / height
# Of the colours of ImageNet's pixels in [0, 1]: standard deviations along the
# principal axes, and these (a column each), as AlexNet's descendants use them.
_COLOUR_SCALES = np.array([0.2175, 0.0188, 0.0045])
_COLOUR_AXES = np.array(
  [
    [-0.5675, 0.7192, 0.4009],
    [-0.5808, -0.0045, -0.8140],
    [-0.5836, -0.6948, 0.4203],
  ]
)


class FlipCrop(NamedTuple):
  """What `flip_crop` needs.

  Attributes:
    corner: int [B, 2], (top, left) of the crop in the padded image, 0 .. 8.
    stride: int [B], -1 takes the columns from right to left, 1 does not.
  """

  corner: np.ndarray
  stride: np.ndarray


def draw_flip_crop(rng: np.random.Generator, count: int) -> FlipCrop:
  """Draws for B = `count` images."""
  corner = rng.integers(0, 2 * _PADDING + 1, (count, 2))
  return FlipCrop(corner, rng.choice((1, -1), count))


def flip_crop(images: np.ndarray, draws: FlipCrop) -> np.ndarray:
  """Pads with 4 pixels of 0 on all sides, crops to the old size, mirrors.

  Args:
    images: uint8 [B, H, W, C].
    draws: of the same B.

  Returns:
    uint8 [B, H, W, C].
  """
  height, width = images.shape[1:3]
  border = (_PADDING, _PADDING)
  padded = np.pad(images, ((0, 0), border, border, (0, 0)))
  crops = [
    image[top : top + height, left : left + width][:, ::stride]
    for image, (top, left), stride in zip(padded, *draws, strict=True)
  ]
  return np.stack(crops)


class CropLight(NamedTuple):
  """What `crop_light` needs, of B images or (without B) of one.

  Attributes:
    area: float [B, T], shares of the image's area.
    log_aspect: float [B, T], logarithms of width / height.
    place: float [B, 2] in [0, 1), of the box: (from the left, from the top).
    flip: bool [B], whether to mirror.
    colour: float [B, 3], along the principal axes of colour, standard
      deviation `lighting`.
  """

  area: np.ndarray
  log_aspect: np.ndarray
  place: np.ndarray
  flip: np.ndarray
  colour: np.ndarray


def draw_crop_light(
  rng: np.random.Generator, count: int, lighting: float
) -> CropLight:
  """Draws for B = `count` images; `lighting` 0 leaves the colours alone."""
  log_aspect = [math.log(ratio) for ratio in _ASPECT]
  return CropLight(
    area=rng.uniform(*_AREA, (count, _TRIES)),
    log_aspect=rng.uniform(*log_aspect, (count, _TRIES)),
    place=rng.random((count, 2)),
    flip=rng.random(count) < 0.5,
    colour=lighting * rng.standard_normal((count, 3)),
  )


def crop_box(
  size: tuple[int, int], draw: CropLight
) -> tuple[int, int, int, int]:
  """The part of an image that a random resized crop takes.

  The first of the T boxes that fits into the image, at a uniform place. If none
  does: the largest box around the centre with an aspect from 3/4 to 4/3. As
  torchvision's `RandomResizedCrop`.

  Args:
    size: (W, H) of the image.
    draw: of one image.

  Returns:
    (left, top, right, bottom).
  """
  width, height = size
  pixels, aspect = width * height * draw.area, np.exp(draw.log_aspect)
  widths = np.rint(np.sqrt(pixels * aspect)).astype(int)
  heights = np.rint(np.sqrt(pixels / aspect)).astype(int)
  fits = (0 < widths) & (widths <= width) & (0 < heights) & (heights <= height)
  if fits.any():
    first = fits.argmax()
    w, h = int(widths[first]), int(heights[first])
    left = int(draw.place[0] * (width - w + 1))
    top = int(draw.place[1] * (height - h + 1))
  else:
    narrow, wide = _ASPECT
    w = min(width, max(1, round(height * wide)))
    h = min(height, max(1, round(width / narrow)))
    left, top = (width - w) // 2, (height - h) // 2
  return left, top, left + w, top + h


def crop_light(image: Image.Image, size: int, draw: CropLight) -> np.ndarray:
  """ImageNet's training view: random resized crop, flip, lighting.

  Args:
    image: of any size.
    size: H = W of the result [pixels].
    draw: of one image.

  Returns:
    uint8 [H, W, C].
  """
  crop = image.crop(crop_box(image.size, draw))
  crop = crop.resize((size, size), Image.Resampling.BILINEAR)
  if draw.colour.any():
    crop = crop.point(lighting_table(draw.colour).ravel().tolist())
  return to_array(crop)[:, :: -1 if draw.flip else 1]


def lighting_table(colour: np.ndarray) -> np.ndarray:
  """What lighting makes of each pixel value, by channel.

  Args:
    colour: float [3], along the principal axes.

  Returns:
    uint8 [C, 256], C = 3.
  """
  shift = 255 * _COLOUR_AXES @ (_COLOUR_SCALES * colour)
  # Rounded up: the thresholds t of the thermometer code are integers, and
  # x > t if and only if ceil(x) > t. The bits are those of the exact sum.
  values = np.arange(256.0) + shift[:, None]
  return np.ceil(np.clip(values, 0, 255)).astype(np.uint8)


def centre_crop(image: Image.Image, resize: int, size: int) -> np.ndarray:
  """The view for evaluation: short side to `resize`, then the central square.

  As torchvision's `Resize` and `CenterCrop`.

  Args:
    image: of any size.
    resize: length of the short side [pixels], at least `size`.
    size: H = W of the result [pixels].

  Returns:
    uint8 [H, W, C].
  """
  short = min(image.size)
  whole = tuple(int(resize * side / short) for side in image.size)
  left, top = (round((side - size) / 2) for side in whole)
  if whole != image.size:
    image = image.resize(whole, Image.Resampling.BILINEAR)
  return to_array(image.crop((left, top, left + size, top + size)))


def to_array(image: Image.Image) -> np.ndarray:
  """Returns the pixels, uint8 [H, W, C]."""
  array = np.asarray(image)
  return array if array.ndim == 3 else array[:, :, None]
