"""What several measurements together say about a checkpoint: a verdict, its evidence and what speaks against it."""

FILE = "diagnosis.json"
SCHEMA = "lsm-probe/diagnosis/1"
