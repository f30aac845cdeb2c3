"""A run's networks as ONNX or OpenVINO files, checked against torch."""
