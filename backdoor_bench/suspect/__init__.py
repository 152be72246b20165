"""Model files from somewhere: read as data, inspected, purified, exported. Nothing in them is ever executed."""
