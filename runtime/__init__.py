"""What every stage needs and no science: errors, files, config, checkpoints, seeds, device."""
