"""What a person looks at: runs side by side, and the report as one HTML file."""
