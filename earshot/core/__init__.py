"""What every package uses: errors, settings, recipes, files, checksums, devices, worker processes."""
