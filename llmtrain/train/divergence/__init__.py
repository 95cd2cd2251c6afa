"""Divergence: which steps are skipped, and when a run is rewound."""
