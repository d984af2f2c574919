"""Stage 5: what was found, as one page and the same numbers as JSON."""

from hawis_jax.report.stage import collect
from hawis_jax.report.stage import run

__all__ = ["collect", "run"]
