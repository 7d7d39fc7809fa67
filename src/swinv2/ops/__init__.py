"""Functions without parameters or state."""
