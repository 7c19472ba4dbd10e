"""Reports: pages that people keep."""
