"""What each stage does to data and weights: plain Python over files, arrays and tables; no Dagster here."""
