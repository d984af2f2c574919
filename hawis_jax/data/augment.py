"""Augmentation: pure functions of images and of the numbers drawn for them.

The draws of a batch are made at once and their count depends on nothing but B,
so that the part of a batch can be made without the rest. They are structured
arrays [B]: a slice of them is the draws of some of the images.

Axes: B images, T tries, H rows, W columns, C channels.
"""

import math

import numpy as np
from PIL import Image

_PADDING = 1 / 8  # of the height, of `flip_crop`: 4 pixels of 32
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
_FLIP_CROP = np.dtype(
  [
    ("corner", int, 2),  # (top, left) of the crop in the padded image
    ("stride", int),  # -1 takes the columns from right to left, 1 does not
  ]
)
_CROP_LIGHT = np.dtype(
  [
    ("area", float, _TRIES),  # shares of the image's area
    ("log_aspect", float, _TRIES),  # logarithms of width / height
    ("place", float, 2),  # of the box in [0, 1): (from the left, from the top)
    ("flip", bool),
    ("colour", float, 3),  # along the principal axes, of deviation `lighting`
  ]
)


def draw_flip_crop(
  rng: np.random.Generator, count: int, height: int
) -> np.ndarray:
  """Draws what `flip_crop` needs for `count` images of H [pixels], [B]."""
  draws = np.empty(count, _FLIP_CROP)
  draws["corner"] = rng.integers(0, 2 * _padding(height) + 1, (count, 2))
  draws["stride"] = rng.choice((1, -1), count)
  return draws


def flip_crop(images: np.ndarray, draws: np.ndarray) -> np.ndarray:
  """Pads with H / 8 pixels of 0 on all sides, crops to the old size, mirrors.

  Images are uint8 [B, H, W, C], and draws [B] those of `draw_flip_crop`.
  """
  height, width = images.shape[1:3]
  border = (_padding(height),) * 2
  padded = np.pad(images, ((0, 0), border, border, (0, 0)))
  crops = [
    image[top : top + height, left : left + width][:, ::stride]
    for image, ((top, left), stride) in zip(padded, draws, strict=True)
  ]
  return np.stack(crops)


def _padding(height):
  return max(1, int(_PADDING * height))


def draw_crop_light(
  rng: np.random.Generator, count: int, lighting: float
) -> np.ndarray:
  """Draws what `crop_light` needs for `count` images, [B].

  The colours' shift has the standard deviation `lighting`.
  """
  narrow, wide = map(math.log, _ASPECT)
  draws = np.empty(count, _CROP_LIGHT)
  draws["area"] = rng.uniform(*_AREA, (count, _TRIES))
  draws["log_aspect"] = rng.uniform(narrow, wide, (count, _TRIES))
  draws["place"] = rng.random((count, 2))
  draws["flip"] = rng.random(count) < 0.5
  draws["colour"] = lighting * rng.standard_normal((count, 3))
  return draws


def crop_box(size: tuple[int, int], draw: np.void) -> tuple[int, int, int, int]:
  """Returns (left, top, right, bottom) of a random resized crop [pixels].

  It is the first of the T boxes of a `draw_crop_light` that fits into the image
  of `size` (W, H) [pixels], at a uniform place. If none does: the largest box
  around the centre with an aspect from 3/4 to 4/3. As torchvision's
  `RandomResizedCrop`.
  """
  width, height = size
  pixels, aspect = width * height * draw["area"], np.exp(draw["log_aspect"])
  widths = np.rint(np.sqrt(pixels * aspect)).astype(int)
  heights = np.rint(np.sqrt(pixels / aspect)).astype(int)
  fits = (0 < widths) & (widths <= width) & (0 < heights) & (heights <= height)
  if fits.any():
    first = fits.argmax()
    w, h = int(widths[first]), int(heights[first])
    left = int(draw["place"][0] * (width - w + 1))
    top = int(draw["place"][1] * (height - h + 1))
  else:
    narrow, wide = _ASPECT
    w = min(width, max(1, round(height * wide)))
    h = min(height, max(1, round(width / narrow)))
    left, top = (width - w) // 2, (height - h) // 2
  return left, top, left + w, top + h


def crop_light(image: Image.Image, size: int, draw: np.void) -> np.ndarray:
  """Makes ImageNet's training view: random resized crop, flip, lighting.

  It is uint8 [H, W, C] with H = W = `size` [pixels], of an image of any size.
  """
  crop = image.crop(crop_box(image.size, draw))
  crop = crop.resize((size, size), Image.Resampling.BILINEAR)
  if draw["colour"].any():
    crop = crop.point(lighting_table(draw["colour"]).ravel().tolist())
  return to_array(crop)[:, :: -1 if draw["flip"] else 1]


def lighting_table(colour: np.ndarray) -> np.ndarray:
  """Returns what lighting makes of each pixel value, uint8 [C = 3, 256].

  The shift of the colour is `colour`, float [3], along the principal axes.
  """
  shift = 255 * _COLOUR_AXES @ (_COLOUR_SCALES * colour)
  # Rounded up: the thresholds t of the thermometer code are integers, and
  # x > t if and only if ceil(x) > t. The bits are those of the exact sum.
  values = np.arange(256.0) + shift[:, None]
  return np.ceil(np.clip(values, 0, 255)).astype(np.uint8)


def centre_crop(image: Image.Image, resize: int, size: int) -> np.ndarray:
  """Makes the view for evaluation: the central square of a resized image.

  As torchvision's `Resize` and `CenterCrop`.

  Args:
    image: of any size.
    resize: what its short side becomes [pixels], at least `size`.
    size: H = W of the uint8 [H, W, C] that is returned [pixels].
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
