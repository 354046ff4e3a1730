"""One module a suite; each has `run(options) -> Table`."""
