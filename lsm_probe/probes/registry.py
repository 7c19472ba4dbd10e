"""The probes: those of this package, in the order of commands and reports, and those that other packages add.

Another package registers a probe through the entry-point group `lsm_probe.probes`: the name of the entry point is the
probe's, its value is where the [`Measurement`] is.
"""

from lsm_probe.probes import alignment, attention, importance, knockout, sensitivity
from lsm_probe.registry import Registry
from lsm_probe.runner.measurement import Measurement

PROBES: Registry[Measurement] = Registry(
    "lsm_probe.probes", "probe", lambda name, found: isinstance(found, Measurement) and found.name == name
)
for _probe in (attention.PROBE, sensitivity.PROBE, knockout.PROBE, alignment.PROBE, importance.PROBE):
    PROBES.register(_probe.name)(_probe)
