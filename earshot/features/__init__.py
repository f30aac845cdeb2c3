"""Caches of features: plan, shards, the merged files, finding and resuming them."""
