"""Any file that holds rows, read row by row: JSON Lines, JSON, CSV, Parquet, data sets of the hub."""
