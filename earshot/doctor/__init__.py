"""What doctor.py looks at: `data` is the verb for a cache, the other files are what it asks of the clips."""
