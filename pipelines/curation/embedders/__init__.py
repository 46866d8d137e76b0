"""Encoders that turn the frames of a clip into one vector, one file each; `pipelines.curation.embedding` chooses among them."""
