"""The names of splits that folders and columns use."""

SPLIT_WORDS = {
    "train": "train",
    "dev": "valid",
    "development": "valid",
    "training": "train",
    "test": "test",
    "testing": "test",
    "subm": "test",
    "submission": "test",
    "eval": "test",
    "evaluation": "test",
    "val": "valid",
    "valid": "valid",
    "validation": "valid",
}
FILLER_WORDS = {"audio", "audios", "data", "set", "clips", "files", "wav", "wavs", "sounds"}
