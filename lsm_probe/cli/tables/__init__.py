"""What the probes' commands print: for each a table of the results and a line about each of them."""
