"""The quality of a corpus: filters, duplicates, leakage and surveys."""
