"""Prepares data sets: python -m hawis_jax.data prepare cifar10 --data_dir D.

Nothing is downloaded, and TensorFlow is not needed.
"""

import argparse
from collections.abc import Sequence
import sys

from hawis_jax import errors
from hawis_jax.data import cifar
from hawis_jax.data import digits
from hawis_jax.data import imagenet
from hawis_jax.data import prepared

_EPILOG = """archives (looked for in <data_dir>/downloads/manual):
  cifar10       cifar-10-binary.tar.gz
  cifar100      cifar-100-binary.tar.gz
  imagenet2012  ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar,
                or --folder with train/<wnid>/*.JPEG and val/<wnid>/*.JPEG
"""


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status: 2 is a mistake."""
  options = _parser().parse_args(arguments)
  try:
    folder = _prepare(options)
  except errors.InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  splits = prepared.builder(folder).info.splits
  counts = (f"{split.num_examples:,} {name}" for name, split in splits.items())
  print(f"{folder} has {', '.join(counts)}")
  return 0


def _parser():
  parser = argparse.ArgumentParser("python -m hawis_jax.data")
  commands = parser.add_subparsers(required=True)
  command = commands.add_parser(
    "prepare",
    help="make a data set from its original files",
    description="Makes a data set from its original files. Nothing is"
    " downloaded, and TensorFlow is not needed.",
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  command.add_argument("name", choices=prepared.KNOWN_NAMES)
  command.add_argument(
    "--data_dir", default="", help="default: $TFDS_DATA_DIR or TFDS's default"
  )
  command.add_argument(
    "--archive",
    nargs="+",
    default=[],
    metavar="PATH",
    help="of imagenet2012 two: training, validation",
  )
  command.add_argument(
    "--sha256",
    nargs="+",
    default=[],
    metavar="HEX",
    help="accept archives with these digests, of any number of images",
  )
  command.add_argument(
    "--folder", metavar="PATH", help="imagenet2012: images in class folders"
  )
  command.add_argument(
    "--subset",
    action="store_true",
    help="--folder may have any number of images",
  )
  return parser


def _prepare(options):
  """Returns the folder of the data set."""
  data_dir = prepared.root(options.data_dir)
  name = options.name
  needed = {digits.NAME: 0, imagenet.NAME: len(imagenet.ARCHIVES)}.get(name, 1)
  needed *= not options.folder
  for flag in ("archive", "sha256"):
    got = len(getattr(options, flag))
    if got not in (0, needed):
      raise errors.InputError(
        f"--{flag}: got {got} for {name}, allowed are {needed}, or none"
      )
  if (options.folder or options.subset) and name != imagenet.NAME:
    raise errors.InputError(
      f"--folder: got it for {name}, allowed is only {imagenet.NAME}"
    )
  if options.subset and not options.folder:
    raise errors.InputError("--subset: allowed is only with --folder")
  if options.folder:
    return imagenet.prepare_folder(data_dir, options.folder, options.subset)
  none = [None] * needed
  archives, digests = options.archive or none, options.sha256 or none
  if name == digits.NAME:
    return digits.prepare(data_dir)
  if name == imagenet.NAME:
    return imagenet.prepare_set(data_dir, archives, digests)
  return cifar.prepare_set(name, data_dir, *archives, *digests)


if __name__ == "__main__":
  sys.exit(main())
