"""The page: hear, look, predict."""
