"""What every stage needs and no science: errors, files, configuration, checkpoints, seeds, device."""
