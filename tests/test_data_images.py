"""Tests of augmentation, image folders, sets of many sizes, and shards."""

import errno
import io
import itertools
import math
import os
import shutil

import numpy as np
from PIL import Image
import pytest
from test_data import assert_equal
from test_data import fails

from hawis_jax import data
from hawis_jax.arithmetic import binary
from hawis_jax.data import augment
from hawis_jax.data import sources


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
  return make_folder(root, np.random.default_rng(0))


def settings_of(data_dir, **fields):
  fields = dict(image_size=16, resize=20, validation_images=6) | fields
  return data.Settings("image_folder", str(data_dir), **fields)


# augment


def test_crop_boxes_are_those_of_torchvisions_loop(rng):
  """One try after the other; some images are too narrow for any."""
  draws = augment.draw_crop_light(rng, 4000, 0.0)
  areas, aspects, places = [], [], []
  for draw in draws:
    w, h = size = tuple(rng.integers(1, 400, 2).tolist())
    box = augment.crop_box(size, draw)
    for area, log_aspect in zip(draw["area"], draw["log_aspect"], strict=True):
      target, aspect = area * w * h, math.exp(log_aspect)
      width = round(math.sqrt(target * aspect))
      height = round(math.sqrt(target / aspect))
      if 0 < width <= w and 0 < height <= h:
        assert (box[2] - box[0], box[3] - box[1]) == (width, height)
        break
    else:
      continue  # the test below
    assert 0 <= box[0] < box[2] <= w and 0 <= box[1] < box[3] <= h
    if min(w, h) > 300:
      areas.append(width * height / (w * h))
      aspects.append(width / height)
      if width < w and height < h:
        places.append((box[0] / (w - width), box[1] / (h - height)))
  assert len(places) > 100
  assert 0.07 < min(areas) < 0.12 and max(areas) > 0.8
  assert 0.74 < min(aspects) and max(aspects) < 1.35
  # Uniform: mean 1/2, its deviation 5 / sqrt(12 n).
  mean, spread = np.mean(places, axis=0), 5 / math.sqrt(12 * len(places))
  assert np.all(np.abs(mean - 0.5) < spread + 0.01)


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
  draws = augment.draw_crop_light(rng, 1, 0.0)
  draws["area"] = 100.0
  assert augment.crop_box(size, draws[0]) == box


def test_crop_light_is_the_resized_crop(rng):
  image = noise(rng, 70, 50)
  draws = augment.draw_crop_light(rng, 20, 0.0)
  for i in range(20):
    draw = draws[i]
    crop = image.crop(augment.crop_box(image.size, draw))
    expected = np.asarray(crop.resize((24, 24), Image.Resampling.BILINEAR))
    if draw["flip"]:
      expected = expected[:, ::-1]
    got = augment.crop_light(image, 24, draw)
    np.testing.assert_array_equal(got, expected)
  assert 0 < draws["flip"].sum() < 20  # fails once in 500,000 times


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
  np.testing.assert_allclose(draws["colour"].std(axis=0), 0.1, rtol=0.03)


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


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_colours_stay_in_all_modes(mode):
  colour = (200, 100, 50)
  image = Image.new("RGB", (16, 16), colour)
  image = image.quantize(16) if mode == "P" else image.convert(mode)
  kind = "JPEG" if mode == "CMYK" else "PNG"
  rgb = augment.to_array(sources.open_image(encode(image, kind), 3))
  np.testing.assert_allclose(rgb, np.broadcast_to(colour, rgb.shape), 0, 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_of_16_bits_become_the_nearest_of_8(channels):
  """65535 is white, and 257 one of its 255 parts."""
  levels = [0, 128, 129, 257, 25_700, 25_829, 65_406, 65_407, 65_535]
  expected = [0, 0, 1, 1, 100, 101, 254, 255, 255]
  pixels = np.array([levels], np.uint16)
  ppm = b"P5 9 1 65535\n" + pixels.astype(">u2").tobytes()
  for file in (encode(Image.fromarray(pixels)), ppm):
    array = augment.to_array(sources.open_image(file, channels))
    assert array.dtype == np.uint8
    for channel in range(channels):
      assert array[0, :, channel].tolist() == expected


def test_floating_point_pixels_are_damage():
  pixels = np.array([0.5, 1.0], "<f4").tobytes()
  with pytest.raises(ValueError, match="floating-point pixels"):
    sources.open_image(b"Pf 2 1 -1.0\n" + pixels, 3)


def test_images_are_turned_upright(rng):
  """As EXIF says; where that is damaged, as they are stored."""
  image = noise(rng, 7, 5)
  pixels = np.asarray(image)
  upright = {1: pixels, 3: pixels[::-1, ::-1], 6: np.rot90(pixels, -1)}
  for orientation, expected in upright.items():
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = sources.open_image(encode(image, exif=exif), 3)
    np.testing.assert_array_equal(augment.to_array(opened), expected)
  broken = encode(image, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12")
  opened = sources.open_image(broken, 3)
  np.testing.assert_array_equal(augment.to_array(opened), pixels)


def test_palette_with_transparency_does_not_warn(rng):
  image = noise(rng, 20, 20).quantize(16)
  file = encode(image, transparency=bytes(range(16)))
  assert sources.open_image(file, 3).mode == "RGB"


@pytest.mark.parametrize(
  "harm", ["cut", "empty", "text", "postscript", "missing"]
)
def test_damaged_image_is_named(tmp_path, rng, harm):
  make_folder(tmp_path, rng)
  path = tmp_path / "train" / "dog" / "4.jpg"
  content = path.read_bytes()
  changed = {
    "cut": content[: len(content) // 2],
    "empty": b"",
    "text": b"not an image",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
  }
  everything = data.load(settings_of(tmp_path)).train_and_validation
  path.unlink() if harm == "missing" else path.write_bytes(changed[harm])
  for augmentation in data.AUGMENTATIONS:
    batches = crops(everything, batch_size=36, augment=augmentation)
    with fails("config.data.data_dir: cannot read", "train/dog/4.jpg"):
      next(batches)


@pytest.mark.parametrize(
  "error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()]
)
def test_a_failing_machine_damages_no_images(tmp_path, rng, monkeypatch, error):
  make_folder(tmp_path, rng)
  train = data.load(settings_of(tmp_path, damaged="skip")).train

  def refuse(*_):
    raise error

  monkeypatch.setattr(type(train.images.records), "__getitems__", refuse)
  with fails("config.data.data_dir: cannot read", "start again there"):
    train.read([3])


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("augmentation", data.AUGMENTATIONS)
def test_damaged_training_images_are_skipped(
  tmp_path, rng, monkeypatch, caplog, augmentation, in_memory
):
  """The next image stands in, whatever shards there are; others stop."""
  make_folder(tmp_path, rng)
  if not in_memory:
    monkeypatch.setattr(data.splits, "_IN_MEMORY_BYTES", 0)

  def batch(**fields):
    splits = data.load(settings_of(tmp_path, damaged="skip"))
    fields |= dict(batch_size=30, augment=augmentation, read_threads=0)
    return splits, next(crops(splits.train, **fields))

  splits, whole = batch()
  records = splits.train.images.records
  names = [record["file_name"] for record in records.__getitems__(range(36))]
  bad = [names[number] for number in splits.train.indices[[3, 7, 8]]]
  for name in bad:
    (tmp_path / name).write_bytes(b"not an image")
  caplog.clear()
  now, skipping = batch()
  for name in bad:  # named, and once
    assert caplog.text.count(f"({name})") == 1
  changed = (whole["image"] != skipping["image"]).any(axis=(1, 2, 3))
  assert 1 <= changed.sum() <= 3
  parts = [batch(shard=(number, 2))[1] for number in (0, 1)]
  assert_equal(
    skipping, {k: np.concatenate([part[k] for part in parts]) for k in whole}
  )
  # Rows 3, 7 and 8 are what 4 and 9 are.
  images = now.train.read([3, 4, 7, 8, 9, 29])["image"]
  assert (images[0] == images[1]).all() and (images[2:4] == images[4]).all()
  unseen = names[splits.validation.indices[0]]
  (tmp_path / unseen).write_bytes(b"neither")
  with fails("config.data.data_dir: cannot read", unseen):
    data.load(settings_of(tmp_path, damaged="skip")).validation.read([0])


def test_a_folder_of_damaged_images_is_not_skipped(tmp_path, rng):
  make_folder(tmp_path, rng)
  splits = data.load(settings_of(tmp_path, damaged="skip"))
  for path in (tmp_path / "train").rglob("*.*"):
    path.write_bytes(b"")
  with fails("config.data.damaged: got 'skip' and 100 damaged images in a row"):
    next(data.train_batches(splits.train, seed=0, batch_size=4))


def test_images_of_too_many_pixels_are_not_decoded(tmp_path, rng):
  """8193 x 8192 zeros are 8 KB of PNG, and 201 MB as an image."""
  make_folder(tmp_path, rng)
  content = encode(Image.new("1", (8193, 8192)))
  assert len(content) < 20_000
  (tmp_path / "train" / "cat" / "0.png").write_bytes(content)
  with fails(
    "config.data.data_dir: cannot read .*cat/0.png",
    r"\(8193, 8192\) pixels, more than",
  ):
    data.load(settings_of(tmp_path))
  assert len(data.load(settings_of(tmp_path, damaged="skip")).train) == 30


@pytest.mark.parametrize("count", [1, 12, 36])
def test_the_first_images_may_be_damaged(tmp_path, rng, count):
  """All of a class, too; not all there are."""
  make_folder(tmp_path, rng)
  for path in sorted((tmp_path / "train").glob("*/*"))[:count]:
    path.write_bytes(b"")
  with fails("config.data.data_dir: cannot read .*train/cat/"):
    data.load(settings_of(tmp_path))
  settings = settings_of(tmp_path, damaged="skip")
  if count < 36:
    read = data.load(settings).train.read(range(30))
    assert read["image"].any(axis=(1, 2, 3)).all()
  else:
    with fails("config.data.data_dir: cannot read .*train/emu/"):
      data.load(settings)


# Image folders


@pytest.mark.parametrize(
  "kind", ["pipe", "device", "outside", "nowhere", "loop", "folder", "class"]
)
def test_only_files_within_the_folder_are_opened(tmp_path, rng, kind):
  """A pipe would wait, a device be read for ever; links may lead within."""
  root = make_folder(tmp_path / "set", rng)
  path, outside = root / "train" / "dog" / "x.png", tmp_path / "x.png"
  path.with_name("y.png").symlink_to("../cat/0.png")
  assert len(data.load(settings_of(root)).train) == 31
  noise(rng, 30, 30).save(outside)
  if kind == "pipe":
    os.mkfifo(path)
  elif kind == "folder":
    path.mkdir()
    path.with_name("y.png").unlink()
    path.with_name("y.png").symlink_to(path)  # one of them is found first
  elif kind == "class":
    shutil.move(root / "train" / "dog", tmp_path / "dog")
    path = root / "train" / "dog"
    path.symlink_to(tmp_path / "dog")
  else:
    target = dict(device="/dev/zero", outside=outside, loop=path)
    path.symlink_to(target.get(kind, tmp_path / "nowhere"))
  for damaged in ("stop", "skip"):
    with fails("config.data.data_dir: got", f"allowed are .* within {root}"):
      data.load(settings_of(root, damaged=damaged))


def test_what_is_no_file_any_more_is_damage(tmp_path, rng, monkeypatch):
  """Put in the place of an image after the start; a sparse file, too."""
  root = make_folder(tmp_path, rng)
  source = data.load(settings_of(root)).train_and_validation
  path = root / "train" / "cat" / "3.png"
  path.unlink()
  os.mkfifo(path)
  with fails(
    "config.data.data_dir: cannot read",
    "cat/3.png is no file, or one of more than",
  ):
    source.read(range(36))
  path.unlink()
  path.touch()
  os.truncate(path, 1 << 40)
  with fails(
    "config.data.data_dir: cannot read",
    "cat/3.png is no file, or one of more than",
  ):
    source.read(range(36))


def test_folder(folder):
  splits = data.load(settings_of(folder))
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
    return data.load(settings_of(str(tmp_path / name))).facts()

  assert facts("b") == facts("a")
  changed = tmp_path / "b" / "train" / "dog" / "4.jpg"
  noise(rng, 30, 30).save(changed)
  before, after = facts("a"), facts("b")
  assert after.pop("train_digest") != before.pop("train_digest")
  assert after == before


def test_one_replaced_image_is_another_data_set(tmp_path, rng, monkeypatch):
  """1 of 200; where sets are too large for all images, the digest says so."""
  make_folder(tmp_path, rng, train=100, classes=("cat", "dog"))
  before = data.load(settings_of(tmp_path)).facts()
  assert "sampled" not in str(before)
  noise(rng, 30, 30).save(tmp_path / "train" / "cat" / "30.png")
  after = data.load(settings_of(tmp_path)).facts()
  assert after.pop("train_digest") != before.pop("train_digest")
  assert after == before
  monkeypatch.setattr(sources, "_DIGEST_TIME", 0.0)
  monkeypatch.setattr(sources, "_DIGEST_SAMPLE", 9)
  sampled = data.load(settings_of(tmp_path)).facts()
  assert sampled["train_digest"].endswith(" (sampled: 9 of 200 images)")
  assert sampled["test_digest"].endswith(" (sampled: 9 of 10 images)")


def test_a_missing_image_is_skipped_or_named(tmp_path, rng):
  make_folder(tmp_path, rng)
  skip, stop = (
    data.load(settings_of(tmp_path, damaged=damaged))
    for damaged in ("skip", "stop")
  )
  whole = stop.facts()
  assert skip.facts() == whole
  (tmp_path / "train" / "dog" / "4.jpg").unlink()
  assert skip.facts()["train_digest"] != whole["train_digest"]
  with fails("config.data.data_dir: cannot read"):
    stop.facts()


@pytest.mark.parametrize("name", ["val", "test"])
def test_val_serves_where_test_has_no_classes(tmp_path, rng, name):
  make_folder(tmp_path, rng)
  (tmp_path / "test").rename(tmp_path / "val")
  if name == "test":
    (tmp_path / "test").mkdir()
    noise(rng, 20, 20).save(tmp_path / "test" / "unlabelled.png")
  assert len(data.load(settings_of(tmp_path)).test) == 15


def test_one_size_needs_no_image_size(tmp_path, rng):
  for split, name, i in itertools.product(("train", "val"), "ab", range(4)):
    (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
    noise(rng, 9, 7).save(tmp_path / split / name / f"{i}.png")
  fields = dict(image_size=0, validation_images=2)
  splits = data.load(settings_of(tmp_path, **fields))
  assert splits.image_shape == (7, 9, 3)
  assert splits.test.read([0, 5])["image"].shape == (2, 7, 9, 3)
  noise(rng, 9, 8).save(tmp_path / "val" / "b" / "3.png")
  with fails(
    "config.data.image_size: got 0 and", "val/b/3.png", r"\(8, 9, 3\)"
  ):
    data.load(settings_of(tmp_path, **fields)).test.read([0])


def test_folders_that_do_not_serve(tmp_path, rng):
  with fails("image folder ''", "'train' and 'test'"):
    data.load(settings_of(""))
  with fails("image folder", "absent': got folders none, allowed"):
    data.load(settings_of(tmp_path / "absent"))
  make_folder(tmp_path, rng)
  (tmp_path / "test" / "fox").mkdir()
  with fails("image folder", "class 'fox' in only one of train and test"):
    data.load(settings_of(tmp_path))
  (tmp_path / "train" / "fox").mkdir()
  with fails("config.data.name", "train/fox has no images, allowed is images"):
    data.load(settings_of(tmp_path))


def test_hidden_files_are_ignored(tmp_path, rng):
  make_folder(tmp_path, rng)
  before = data.load(settings_of(tmp_path)).facts()
  for name in ("._0.png", ".DS_Store", ".hidden.jpg"):
    (tmp_path / "train" / "dog" / name).write_bytes(b"not an image")
  (tmp_path / "test" / ".cache").mkdir()
  assert data.load(settings_of(tmp_path)).facts() == before


def test_one_class_is_refused(tmp_path, rng):
  make_folder(tmp_path, rng, classes=("cat",))
  with fails("config.data.name: .* has 1 class of images, allowed is 2"):
    data.load(settings_of(tmp_path))


def test_resize_below_image_size(folder):
  with fails("config.data.resize: got 15, allowed are .*image_size = 16"):
    data.load(settings_of(folder, resize=15))


# Batches of crops


def crops(source, **arguments):
  arguments = dict(seed=3, batch_size=12, augment="imagenet") | arguments
  return data.train_batches(source, **arguments)


def test_crops_are_those_of_the_draws(folder):
  """Every image is a view of the file it is said to be, by label and epoch."""
  source = data.load(settings_of(folder)).train
  batches = list(itertools.islice(crops(source), 5))
  labels = np.concatenate([batch["label"] for batch in batches])
  expected = source.read(range(30))["label"]
  for epoch in (labels[:30], labels[30:]):
    np.testing.assert_array_equal(np.sort(epoch), np.sort(expected))
  images = np.concatenate([batch["image"] for batch in batches])
  assert images.shape == (60, 16, 16, 3)
  assert images.dtype == np.uint8
  assert len({image.tobytes() for image in images}) == 60  # no view twice


@pytest.mark.parametrize("augmentation", data.AUGMENTATIONS)
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_shards_are_the_rows_of_the_whole(folder, augmentation, processes):
  source = data.load(settings_of(folder)).train
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


def test_lighting_reaches_the_images(folder):
  lit, unlit = (
    next(crops(data.load(settings_of(folder, lighting=lighting)).train))[
      "image"
    ]
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


def test_crops_need_a_size_and_colours(rng):
  class Grey:
    def __len__(self):
      return 12

    def __getitems__(self, numbers):
      return [{"image": encode(noise(rng, 20, 20, "L")), "label": 0}] * 12

  def source(lighting, resize):
    images = data.Images(Grey(), "x", (20, 20, 1), resize)
    return data.Source(images, np.arange(12), lighting)

  with fails("config.data.augment: got 'imagenet'", "image_size > 0"):
    crops(source(0.0, resize=0))
  with fails("config.data.lighting: got 0.1 for images of 1 channels"):
    crops(source(0.1, resize=20))
  assert next(crops(source(0.0, resize=20)))["image"].shape == (12, 20, 20, 1)
