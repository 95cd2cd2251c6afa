"""The JSON documents that `--json` prints, and the lines and files of a run directory."""
