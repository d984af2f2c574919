"""Image folders: train/<class>/<image> and test/ or val/<class>/<image>."""

from collections.abc import Mapping, Sequence
import os
import stat
from typing import Any

from hawis_jax import errors
from hawis_jax.data import sources
from hawis_jax.runtime import storage

NAME = "image_folder"

_MOST_BYTES = 1 << 28  # of a file
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".webp")


class _Files:
  """Records of encoded images in files; `paths` are relative to `root`."""

  def __init__(self, root, paths, labels):
    self._root, self._paths, self._labels = root, paths, labels

  def __len__(self):
    return len(self._paths)

  def __getitems__(self, numbers: Sequence[int]) -> list[Mapping[str, Any]]:
    return [
      {
        "image": _read(self._root / self._paths[number]),
        "label": self._labels[number],
        "file_name": self._paths[number],
      }
      for number in numbers
    ]


def _read(path):
  """Returns a file's content; pipes and devices would give it for ever."""
  # What is no file may have come since; opening a pipe would wait.
  descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  with open(descriptor, "rb") as file:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
      most = f"{_MOST_BYTES:,} bytes"
      raise ValueError(f"{path} is no file, or one of more than {most}")
    return file.read(status.st_size)


def open_folder(data_dir: str, *, skip_damaged: bool = False) -> sources.Stored:
  """Finds the images of `train` and `test`, or `val` if that has no classes.

  Classes are the sorted folder names of `train`. Images become RGB. Hidden
  files and folders, whose names begin with a dot, are ignored.

  Args:
    data_dir: the folder.
    skip_damaged: whether the size may be that of the first whole image.

  Raises:
    InputError: a folder is missing, unreadable or has no images; what is named
      as an image is no file, or a link out of the folder; or the two splits
      differ in their classes.
  """
  root = storage.expanded(data_dir, "config.data.data_dir")
  place = f"image folder '{data_dir}'"
  try:
    found = {name: _folders(root / name) for name in ("train", "test", "val")}
    test = "test" if found["test"] else "val"
    if not data_dir or not found["train"] or not found[test]:
      raise errors.InputError(
        f"{place}: got folders {', '.join(_folders(root)) or 'none'}, allowed"
        " are 'train' and 'test' (or 'val'), with a folder for each class"
      )
    if differ := set(found["train"]) ^ set(found[test]):
      raise errors.InputError(
        f"{place}: got class '{min(differ)}' in only one of train and {test},"
        " allowed are the same classes in both"
      )
    classes = found["train"]
    train, test = (_find(root, split, classes) for split in ("train", test))
  except OSError as error:
    raise sources.unreadable(root, error) from error
  images = sources.Images(train, root, (0, 0, 3), skip_damaged=skip_damaged)
  height, width = images.stored_size()
  shape = (height, width, 3)
  return sources.Stored(root, "", train, test, shape, len(classes))


def _folders(path):
  if not path.is_dir():
    return []
  found = (p.name for p in path.iterdir() if p.is_dir())
  return sorted(name for name in found if not name.startswith("."))


def _find(root, split, classes):
  """Returns the records of a split: class by class, each by file name."""
  paths, labels = [], []
  for label, name in enumerate(classes):
    folder = root / split / name
    _check_within(root, folder, folder.is_dir())
    with os.scandir(folder) as entries:
      images = [entry for entry in entries if _is_image(entry.name)]
    for entry in images:
      # Known with the name: asking a million files takes long.
      if not entry.is_file(follow_symlinks=False):
        path = folder / entry.name
        _check_within(root, path, path.is_file())
    names = sorted(entry.name for entry in images)
    if not names:
      allowed = f"images {', '.join(_SUFFIXES)}"
      raise sources.unfit(folder, "no images", allowed)
    paths += [f"{split}/{name}/{file}" for file in names]
    labels += [label] * len(names)
  return _Files(root, paths, labels)


def _is_image(name):
  return name.lower().endswith(_SUFFIXES) and not name.startswith(".")


def _check_within(root, path, is_there):
  """Raises InputError where a path is of no file or folder within `root`."""
  got = "which is no file"
  if is_there:
    real = path.resolve()
    if real.is_relative_to(root.resolve()):
      return
    got = f"which leads to {real}"
  raise errors.InputError(
    f"config.data.data_dir: got {path}, {got}, allowed are files and folders "
    f"within {root}"
  )
