"""Kaggle, through its official client alone: download, bundle, push, submit."""
