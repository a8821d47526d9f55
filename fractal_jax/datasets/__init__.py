"""Where the images come from: one module for each kind of source."""
