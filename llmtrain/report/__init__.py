"""Reports for people: runs side by side, and the report as one HTML file."""
