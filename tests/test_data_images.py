"""Tests of augmentation, image folders, sets of many sizes, and shards."""

import contextlib
import errno
import io
import itertools
import math
import re
import shutil

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from hawis_jax import binary
from hawis_jax import config
from hawis_jax import data
from hawis_jax import errors
from hawis_jax.data import augment
from hawis_jax.data import sources
from hawis_jax.data import splits as splits_lib


@pytest.fixture
def rng():
  return np.random.default_rng()


def noise(rng, width, height, mode="RGB"):
  pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
  return Image.fromarray(pixels).convert(mode)


def encode(image, format="PNG", **options):
  file = io.BytesIO()
  image.save(file, format, **options)
  return file.getvalue()


def make_folder(root, rng, train=12, test=5, classes=("cat", "dog", "emu")):
  """Writes noise of random sizes, named so that the order is not trivial."""
  for split, count in (("train", train), ("test", test)):
    for name in classes:
      (root / split / name).mkdir(parents=True)
      for i in range(count):
        size = rng.integers(20, 60, 2).tolist()
        suffix = ("png", "jpg", "JPEG")[i % 3]
        noise(rng, *size).save(root / split / name / f"{i}.{suffix}")
  return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp("images")
  return make_folder(root, np.random.default_rng())


def section(data_dir, **fields):
  section = config.default().data
  fields = dict(image_size=16, resize=20, validation_images=6) | fields
  section.update(name="image_folder", data_dir=str(data_dir), **fields)
  return section


@contextlib.contextmanager
def fails(*patterns):
  """Expects an InputError of one line that has all patterns, in this order."""
  with pytest.raises(errors.InputError) as caught:
    yield
  assert re.fullmatch(".*".join(["", *patterns, ""]), str(caught.value))


def assert_equal(batch, other):
  assert batch.keys() == other.keys()
  for key, value in batch.items():
    np.testing.assert_array_equal(value, other[key])


# augment


def one(draws, i=0):
  return type(draws)(*(values[i] for values in draws))


def test_crop_boxes(rng):
  draws = augment.draw_crop_light(rng, 4000, 0.0)
  size = tuple(rng.integers(300, 400, 2).tolist())
  areas, aspects, places = [], [], []
  for i in range(4000):
    left, top, right, bottom = augment.crop_box(size, one(draws, i))
    width, height = right - left, bottom - top
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]
    areas.append(width * height / math.prod(size))
    aspects.append(width / height)
    if width < size[0] and height < size[1]:
      places.append((left / (size[0] - width), top / (size[1] - height)))
  assert 0.07 < min(areas) < 0.12
  assert max(areas) > 0.8
  # Rounding of a side of at least 10 pixels; the centre box is inside anyway.
  assert 0.65 < min(aspects) and max(aspects) < 1.54
  # Uniform: mean 1/2, its deviation 5 / sqrt(12 n).
  mean, spread = np.mean(places, axis=0), 5 / math.sqrt(12 * len(places))
  assert np.all(np.abs(mean - 0.5) < spread + 0.01)


def test_crop_box_takes_the_first_that_fits_as_torchvision_does(rng):
  """The published loop, one try after the other."""
  size = tuple(rng.integers(1, 60, 2).tolist())
  draws = augment.draw_crop_light(rng, 300, 0.0)
  for i in range(300):
    draw = one(draws, i)
    expected = None
    for area, log_aspect in zip(draw.area, draw.log_aspect, strict=True):
      target, aspect = area * size[0] * size[1], math.exp(log_aspect)
      width = round(math.sqrt(target * aspect))
      height = round(math.sqrt(target / aspect))
      if 0 < width <= size[0] and 0 < height <= size[1]:
        expected = width, height
        break
    left, top, right, bottom = augment.crop_box(size, draw)
    if expected:
      assert (right - left, bottom - top) == expected


@pytest.mark.parametrize(
  ("size", "box"),
  [
    ((400, 10), (193, 0, 206, 10)),
    ((10, 400), (0, 193, 10, 206)),
    ((10, 10), (0, 0, 10, 10)),
    ((1, 1), (0, 0, 1, 1)),
    ((1, 90), (0, 44, 1, 45)),
  ],
)
def test_crop_box_of_the_centre_when_none_fits(rng, size, box):
  draw = one(augment.draw_crop_light(rng, 1, 0.0))
  draw = draw._replace(area=np.full(10, 100.0))
  assert augment.crop_box(size, draw) == box


def test_crop_light_is_the_resized_crop(rng):
  image = noise(rng, 70, 50)
  draws = augment.draw_crop_light(rng, 20, 0.0)
  for i in range(20):
    draw = one(draws, i)
    crop = image.crop(augment.crop_box(image.size, draw))
    expected = np.asarray(crop.resize((24, 24), Image.Resampling.BILINEAR))
    if draw.flip:
      expected = expected[:, ::-1]
    got = augment.crop_light(image, 24, draw)
    np.testing.assert_array_equal(got, expected)
  assert 0 < draws.flip.sum() < 20  # fails once in 500,000 times


def test_lighting_keeps_the_bits_of_the_exact_sum(rng):
  """The thermometer code of the lit image is that of the real-valued one."""
  colour = 0.3 * rng.standard_normal(3)
  pixels = rng.integers(0, 256, (1, 8, 9, 3), np.uint8)
  table = augment.lighting_table(colour)
  lit = np.stack([table[c][pixels[..., c]] for c in range(3)], axis=-1)
  values, axes = np.array([0.2175, 0.0188, 0.0045]), augment._COLOUR_AXES
  exact = pixels / 255 + axes @ (values * colour)
  bits = np.asarray(binary.thermometer_code(lit, 32)).reshape(1, 8, 9, 32, 3)
  for level in range(32):
    expected = exact * 255 > 8 * level + 4
    np.testing.assert_array_equal(bits[..., level, :], expected)


def test_lighting_axes_are_orthonormal_and_its_scale_is_alexnets():
  axes = augment._COLOUR_AXES
  np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-3)
  draws = augment.draw_crop_light(np.random.default_rng(0), 20_000, 0.1)
  np.testing.assert_allclose(draws.colour.std(axis=0), 0.1, rtol=0.03)


def test_no_lighting_is_the_identity():
  table = augment.lighting_table(np.zeros(3))
  np.testing.assert_array_equal(table, [np.arange(256)] * 3)


@pytest.mark.parametrize("size", [(500, 375), (30, 77), (40, 40), (256, 300)])
def test_centre_crop(rng, size):
  image = noise(rng, *size)
  got = augment.centre_crop(image, 32, 28)
  scale = 32 / min(size)
  whole = image.resize(
    (int(size[0] * scale + 1e-9), int(size[1] * scale + 1e-9)),
    Image.Resampling.BILINEAR,
  )
  left, top = round((whole.width - 28) / 2), round((whole.height - 28) / 2)
  expected = np.asarray(whole)[top : top + 28, left : left + 28]
  np.testing.assert_array_equal(got, expected)


# Modes and damage


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "1", "LA"])
def test_all_modes_become_those_of_the_set(rng, mode):
  # Uniform images, which no colour table or JPEG changes much.
  level = int(rng.integers(0, 2)) * 255
  image = Image.new("RGB", (20, 20), (level,) * 3).convert(mode)
  kind = "JPEG" if mode == "CMYK" else "PNG"
  for channels in (1, 3):
    opened = sources.open_image(encode(image, kind), channels)
    array = augment.to_array(opened)
    assert array.shape == (20, 20, channels)
    assert np.abs(array.astype(int) - level).max() <= 2


def test_palette_with_transparency_does_not_warn(rng):
  image = noise(rng, 20, 20).quantize(16)
  file = encode(image, transparency=bytes(range(16)))
  assert sources.open_image(file, 3).mode == "RGB"


@pytest.mark.parametrize("harm", ["cut", "empty", "text", "postscript"])
def test_damaged_image_is_named(tmp_path, rng, harm):
  make_folder(tmp_path, rng)
  path = tmp_path / "train" / "dog" / "4.jpg"
  content = path.read_bytes()
  path.write_bytes(
    {
      "cut": content[: len(content) // 2],
      "empty": b"",
      "text": b"not an image",
      "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }[harm]
  )
  splits = data.load(section(tmp_path))
  everything = splits.train_and_validation
  for augmentation in data.AUGMENTATIONS:
    batches = data.train_batches(
      everything, seed=0, batch_size=36, augment=augmentation
    )
    with fails("cannot read", re.escape(str(tmp_path)), "train/dog/4.jpg"):
      next(batches)


@pytest.mark.parametrize(
  "error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()]
)
def test_a_failing_machine_damages_no_images(tmp_path, rng, monkeypatch, error):
  make_folder(tmp_path, rng)
  train = data.load(section(tmp_path, damaged="skip")).train

  def refuse(*_):
    raise error

  monkeypatch.setattr(type(train.images.records), "__getitems__", refuse)
  with fails("cannot read", "start again there"):
    train.read([3])


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("augmentation", data.AUGMENTATIONS)
def test_damaged_training_images_are_skipped(
  tmp_path, rng, monkeypatch, caplog, augmentation, in_memory
):
  """The next image stands in, whatever shards there are; others stop."""
  make_folder(tmp_path, rng)
  if not in_memory:
    monkeypatch.setattr(splits_lib, "_IN_MEMORY_BYTES", 0)
  splits = data.load(section(tmp_path, damaged="skip"))

  def batch(shard=(0, 1)):
    now = data.load(section(tmp_path, damaged="skip"))
    batches = data.train_batches(
      now.train,
      seed=0,
      batch_size=30,
      augment=augmentation,
      shard=shard,
      read_threads=0,  # none that reads on later
    )
    return now, next(batches)

  whole = batch()[1]
  records = splits.train.images.records
  names = [records.__getitems__([i])[0]["file_name"] for i in range(36)]
  bad = [int(n) for n in splits.train.indices[[3, 7, 8]]]
  for number in bad:
    (tmp_path / names[number]).write_bytes(b"not an image")
  caplog.clear()
  now, skipping = batch()
  for number in bad:  # named, and once
    assert caplog.text.count(f"({names[number]})") == 1
  changed = [
    i for i in range(30) if (whole["image"][i] != skipping["image"][i]).any()
  ]
  assert 1 <= len(changed) <= 3
  for part in (0, 1):
    rows = slice(15 * part, 15 * part + 15)
    share = batch((part, 2))[1]
    np.testing.assert_array_equal(share["image"], skipping["image"][rows])
    np.testing.assert_array_equal(share["label"], skipping["label"][rows])
  # Rows 3, 7 and 8 are what 4 and 9 are.
  read = now.train.read([3, 4, 7, 8, 9, 29])
  assert (read["image"][0] == read["image"][1]).all()
  assert (read["image"][2:4] == read["image"][4]).all()
  (tmp_path / names[splits.validation.indices[0]]).write_bytes(b"neither")
  with fails("cannot read", names[splits.validation.indices[0]]):
    data.load(section(tmp_path, damaged="skip")).validation.read([0])


def test_a_folder_of_damaged_images_is_not_skipped(tmp_path, rng):
  make_folder(tmp_path, rng)
  splits = data.load(section(tmp_path, damaged="skip"))
  for path in (tmp_path / "train").rglob("*.*"):
    path.write_bytes(b"")
  with fails("config.data.damaged: got 'skip' and 100 damaged images in a row"):
    next(data.train_batches(splits.train, seed=0, batch_size=4))


def test_missing_image_is_named(tmp_path, rng):
  make_folder(tmp_path, rng)
  splits = data.load(section(tmp_path))
  (tmp_path / "test" / "emu" / "3.png").unlink()
  with fails("cannot read", "test/emu/3.png"):
    splits.test.read(range(15))


# Image folders


def test_folder(folder):
  splits = data.load(section(folder))
  assert (splits.name, splits.version) == ("image_folder", "")
  assert (splits.image_shape, splits.num_classes) == ((16, 16, 3), 3)
  sizes = len(splits.train), len(splits.validation), len(splits.test)
  assert sizes == (30, 6, 15)
  read = splits.test.read(range(15))
  assert read["image"].dtype == np.uint8
  assert read["label"].tolist() == [0] * 5 + [1] * 5 + [2] * 5
  for i, name in enumerate(["0.png", "1.jpg", "2.JPEG", "3.png", "4.jpg"]):
    with Image.open(folder / "test" / "dog" / name) as image:
      expected = augment.centre_crop(image, 20, 16)
    np.testing.assert_array_equal(read["image"][5 + i], expected)


def test_facts_tell_contents_not_places(tmp_path, rng):
  make_folder(tmp_path / "a", rng)
  shutil.copytree(tmp_path / "a", tmp_path / "b")

  def facts(name):
    return data.load(section(str(tmp_path / name))).facts()

  assert facts("b") == facts("a")
  changed = tmp_path / "b" / "train" / "dog" / "4.jpg"
  noise(rng, 30, 30).save(changed)
  before, after = facts("a"), facts("b")
  assert after.pop("train_digest") != before.pop("train_digest")
  assert after == before


def test_train_and_validation(folder):
  splits = data.load(section(folder))
  everything = splits.train_and_validation
  assert everything.images is splits.train.images  # decoded once for both
  assert everything.lighting == splits.train.lighting
  whole = everything.read(range(36))
  assert whole["label"].tolist() == [0] * 12 + [1] * 12 + [2] * 12
  for source in (splits.train, splits.validation):
    part = source.read(range(len(source)))
    np.testing.assert_array_equal(part["image"], whole["image"][source.indices])


@pytest.mark.parametrize("name", ["val", "test"])
def test_val_serves_where_test_has_no_classes(tmp_path, rng, name):
  make_folder(tmp_path, rng)
  (tmp_path / "test").rename(tmp_path / "val")
  if name == "test":
    (tmp_path / "test").mkdir()
    noise(rng, 20, 20).save(tmp_path / "test" / "unlabelled.png")
  assert len(data.load(section(tmp_path)).test) == 15


def test_one_size_needs_no_image_size(tmp_path, rng):
  for split, name, i in itertools.product(("train", "val"), "ab", range(4)):
    (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
    noise(rng, 9, 7).save(tmp_path / split / name / f"{i}.png")
  fields = dict(image_size=0, validation_images=2)
  splits = data.load(section(tmp_path, **fields))
  assert splits.image_shape == (7, 9, 3)
  assert splits.test.read([0, 5])["image"].shape == (2, 7, 9, 3)
  noise(rng, 9, 8).save(tmp_path / "val" / "b" / "3.png")
  with fails("config.data.image_size: got 0 and", "val/b/3.png", "8 x 9 x 3"):
    data.load(section(tmp_path, **fields)).test.read([0])


def test_folders_that_do_not_serve(tmp_path, rng):
  with fails("image folder ''", "'train' and 'test'"):
    data.load(section(""))
  with fails("image folder", "absent': got folders none, allowed"):
    data.load(section(tmp_path / "absent"))
  make_folder(tmp_path, rng)
  (tmp_path / "test" / "fox").mkdir()
  with fails("image folder", "class 'fox' in only one of train and test"):
    data.load(section(tmp_path))
  (tmp_path / "train" / "fox").mkdir()
  with fails("config.data.name", "train/fox has no images, allowed is images"):
    data.load(section(tmp_path))


def test_resize_below_image_size(folder):
  with fails("config.data.resize: got 15, allowed are .*image_size = 16"):
    data.load(section(folder, resize=15))


# Batches of crops


def crops(source, **arguments):
  arguments = dict(seed=3, batch_size=12, augment="imagenet") | arguments
  return data.train_batches(source, **arguments)


def test_crops_are_those_of_the_draws(folder):
  """Every image is a view of the file it is said to be, by label and epoch."""
  source = data.load(section(folder)).train
  batches = list(itertools.islice(crops(source), 5))
  labels = np.concatenate([batch["label"] for batch in batches])
  expected = source.read(range(30))["label"]
  for epoch in (labels[:30], labels[30:]):
    np.testing.assert_array_equal(np.sort(epoch), np.sort(expected))
  images = np.concatenate([batch["image"] for batch in batches])
  assert images.shape == (60, 16, 16, 3)
  assert images.dtype == np.uint8
  assert len({image.tobytes() for image in images}) == 60  # no view twice


@pytest.mark.parametrize("threads", [0, 3])
def test_crops_resume(folder, threads):
  source = data.load(section(folder)).train
  whole = itertools.islice(crops(source), 4, 7)
  rest = crops(source, start_step=4, read_threads=threads)
  for batch in whole:
    assert_equal(batch, next(rest))


@pytest.mark.parametrize("augmentation", data.AUGMENTATIONS)
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_shards_are_the_rows_of_the_whole(folder, augmentation, processes):
  source = data.load(section(folder)).train
  whole = crops(source, augment=augmentation)
  parts = [
    crops(source, augment=augmentation, shard=(process, processes))
    for process in range(processes)
  ]
  for batch in itertools.islice(whole, 4):
    rows = [next(part) for part in parts]
    joined = {
      key: np.concatenate([part[key] for part in rows]) for key in batch
    }
    assert_equal(batch, joined)


def test_a_shard_reads_only_its_rows(folder):
  read = []

  class Spy:
    def __init__(self, records):
      self.records = records

    def __len__(self):
      return len(self.records)

    def __getitems__(self, numbers):
      read.extend(numbers)
      return self.records.__getitems__(numbers)

  source = data.load(section(folder)).train
  images = data.Images(
    Spy(source.images.records), folder, (16, 16, 3), resize=20
  )
  spied = data.Source(images, source.indices)
  next(crops(spied, shard=(1, 3), read_threads=0))
  assert len(read) == 4


def test_lighting_reaches_the_images(folder):
  lit, unlit = (
    next(crops(data.load(section(folder, lighting=lighting)).train))["image"]
    for lighting in (0.5, 0.0)
  )
  difference = lit.astype(int) - unlit
  # One shift a channel and image, where values are not cut off at 0 or 255. A
  # shift beyond 90 is more than 5 standard deviations away.
  for image, shift in zip(unlit, difference, strict=True):
    for channel in range(3):
      inside = (image[..., channel] > 90) & (image[..., channel] < 165)
      assert np.ptp(shift[..., channel][inside]) == 0
  assert np.any(difference)


@pytest.mark.parametrize(
  ("arguments", "patterns"),
  [
    (dict(shard=(2, 2)), ["shard: got process 2 of 2, allowed are 0 to 1"]),
    (dict(shard=(0, 5)), ["batch_size: got 12, allowed are multiples of 5"]),
  ],
)
def test_bad_shards(folder, arguments, patterns):
  with fails(*patterns):
    crops(data.load(section(folder)).train, **arguments)


def test_crops_need_a_size_and_colours(rng):
  class Grey:
    def __len__(self):
      return 20

    def __getitems__(self, numbers):
      return [{"image": encode(noise(rng, 20, 20, "L")), "label": 0}] * 12

  def source(**fields):
    return data.Source(data.Images(Grey(), "x", **fields), np.arange(20), 0.1)

  with fails("config.data.augment: got 'imagenet'", "image_size > 0"):
    crops(source(shape=(20, 20, 1)))
  grey = source(shape=(20, 20, 1), resize=20)
  with fails("config.data.lighting: got 0.1 for images of 1 channels"):
    crops(grey)
  unlit = data.Source(grey.images, grey.indices)
  assert next(crops(unlit))["image"].shape == (12, 20, 20, 1)


# evaluation_stream


@pytest.mark.parametrize("in_memory", [False, True])
def test_stream_is_the_stack(folder, in_memory):
  splits = data.load(section(folder))
  images = data.Images(
    splits.test.images.records, folder, (16, 16, 3), 20, in_memory
  )
  source = data.Source(images, splits.test.indices)
  for size, limit in ((4, None), (15, None), (7, 9), (20, 1)):
    stacked = data.evaluation_batches(source, size, limit)
    batches = list(data.evaluation_stream(source, size, limit))
    assert len(batches) == len(stacked["label"])
    for i, batch in enumerate(batches):
      assert_equal(batch, {key: value[i] for key, value in stacked.items()})
  with fails("evaluation images: got 16, allowed are 1 to 15"):
    data.evaluation_stream(source, 4, 16)


# TFDS sets of many sizes


class Sizes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Noise of random sizes; by `splits`: {name: (count, label)}."""

  VERSION = tfds.core.Version("2.3.4")
  splits = {}

  def _info(self):
    features = {
      "file_name": tfds.features.Text(),
      "image": tfds.features.Image(),
      "label": tfds.features.ClassLabel(num_classes=2),
    }
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    return {n: self._generate_examples(n, *s) for n, s in self.splits.items()}

  def _generate_examples(self, split, count, label):
    rng = np.random.default_rng()
    for i in range(count):
      image = noise(rng, *rng.integers(20, 60, 2).tolist(), ("RGB", "L")[i % 2])
      name = f"{split}{i}.png"
      yield i, {"file_name": name, "image": image, "label": label}


def make_sizes(root, name, **splits):
  tfds.disable_progress_bar()
  values = dict(name=name, splits=splits, __doc__="S.")
  cls = type("Variant", (Sizes,), values, skip_registration=True)
  cls(data_dir=root, file_format="array_record").download_and_prepare()


@pytest.mark.parametrize(
  ("name", "splits", "test_images"),
  [
    ("sizes", dict(train=(8, 1), test=(3, 0), validation=(2, 0)), 3),
    ("sizes", dict(train=(8, 1), test=(3, -1), validation=(2, 0)), 2),
    ("sizes", dict(train=(8, 1), validation=(2, 0)), 2),
    ("imagenet2012", dict(train=(8, 1), test=(3, 0), validation=(2, 0)), 2),
  ],
)
def test_which_split_is_the_test(tmp_path, name, splits, test_images):
  make_sizes(tmp_path, name, **splits)
  fields = section(tmp_path, validation_images=2)
  fields.name = name
  loaded = data.load(fields)
  assert loaded.version == "2.3.4"
  assert len(loaded.test) == test_images
  read = loaded.test.read(range(test_images))
  assert read["image"].shape == (test_images, 16, 16, 3)
  assert not read["label"].any()
  fields.image_size = 0
  with fails("config.data.name", "may differ in size", "image_size > 0"):
    data.load(fields)


def test_no_labelled_test_images(tmp_path):
  make_sizes(tmp_path, "sizes", train=(8, 1), test=(3, -1))
  fields = section(tmp_path, validation_images=2)
  fields.name = "sizes"
  with fails("sizes/2.3.4 has no labelled images 'test' or 'validation'"):
    data.load(fields)
