"""The hyperspherical energy: what it is (potential, reference), and how it is computed fast."""

from mhe_core.energy.functional import hyperspherical_energy, sharded_hyperspherical_energy

__all__ = ["hyperspherical_energy", "sharded_hyperspherical_energy"]
