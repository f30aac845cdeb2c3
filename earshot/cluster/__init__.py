"""Workers on several machines: Ray behind the worker pool's contract. Imported only with --cluster."""
