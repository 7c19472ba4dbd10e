"""`python -m lsm_probe`, the form that `torchrun -m` can start."""

from lsm_probe.cli import main

if __name__ == "__main__":
    main()
