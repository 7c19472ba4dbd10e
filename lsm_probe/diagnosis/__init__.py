"""Combines the measurements of a checkpoint into a verdict, with evidence for it and against it."""

FILE = "diagnosis.json"
SCHEMA = "lsm-probe/diagnosis/1"
