"""The modules of the norms; their names, options and promises are in `catalog`."""
