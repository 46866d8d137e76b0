"""The built-in corpus: rendered here, really encoded, with known cuts, duplicates and damage."""
