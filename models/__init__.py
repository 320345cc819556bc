"""The mathematics: modules and losses. No files, no arguments, no printing."""
