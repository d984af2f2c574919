"""Prepares data sets: python -m hawis_jax.data prepare cifar10 --data_dir D."""

import sys

from hawis_jax.data import prepare

if __name__ == "__main__":
  sys.exit(prepare.main())
