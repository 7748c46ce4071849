"""Faults planted in copies of real rules, each with the judges that must name it."""

from faults import arrivals, calls, digits, memory, numbers, transforms  # noqa: F401  each plants its own
from faults.planted import FAULTS, Fault

__all__ = ["FAULTS", "Fault"]
