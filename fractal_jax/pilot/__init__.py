"""Whether this works for one's data: levels compared, and decided in stages."""
