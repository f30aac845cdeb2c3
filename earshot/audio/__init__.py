"""From files to waves: decoding, windows, variations, spectrograms."""
