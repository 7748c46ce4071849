"""torch's and our functions spelled in rules: importing this fills the table."""

from manualgrad.dag.spelling import arithmetic, attention, networks, shapes  # noqa: F401
