"""Where video comes from: folders, manifests, tars and annotated data sets, and the ingest batches cut from them."""
