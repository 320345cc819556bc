"""Reading and writing inputs: expression, splits, tiles, slides, pixels."""
