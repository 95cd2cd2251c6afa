"""Bad numbers: which steps are withheld, and when a run is rewound."""
