"""Training clips on disk and in batches: WebDataset tars, their Parquet index, and the loader that is a pure function of the step."""
