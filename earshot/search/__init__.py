"""The bake-off of many heads, and tuning of one."""
