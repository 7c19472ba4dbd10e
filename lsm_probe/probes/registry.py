"""The probes of this package, in the order of commands and reports, and the probes that other packages add.

Another package registers a probe through the entry-point group `lsm_probe.probes`: the entry point's name is the name
of the probe, and its value is the location of the [`Measurement`].
"""

from lsm_probe.probes import alignment, attention, importance, knockout, sensitivity
from lsm_probe.registry import Registry
from lsm_probe.runner.measurement import Measurement

PROBES: Registry[Measurement] = Registry(
    "lsm_probe.probes", "probe", lambda name, found: isinstance(found, Measurement) and found.name == name
)
for _probe in (attention.PROBE, sensitivity.PROBE, knockout.PROBE, alignment.PROBE, importance.PROBE):
    PROBES.register(_probe.name)(_probe)
