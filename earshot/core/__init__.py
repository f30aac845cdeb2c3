"""What every package stands on: errors, settings, recipes, files, checksums, devices, worker processes."""
