"""Taking videos out, and telling what they have touched."""
