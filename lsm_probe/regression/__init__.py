"""The regression check on eta curves, for continuous integration: `lsm-probe check` and a pytest plugin."""
