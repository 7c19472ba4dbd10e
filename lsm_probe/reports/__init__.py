"""Reports: HTML pages, notebooks and figures made from results."""
