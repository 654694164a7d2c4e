"""An `evaluate` module; its file has the name of its folder, as `evaluate.load` asks."""
