"""Audio files as waves: decoding, windows, augmentation, spectrograms."""
