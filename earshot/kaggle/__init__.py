"""Kaggle by its official client: download, bundle, push, submit."""
