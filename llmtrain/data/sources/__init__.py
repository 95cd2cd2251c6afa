"""Sources of text: local files, object stores, web servers and dataset hubs."""
