"""Many trainings of one plan: resumable at the trial and inside a trial."""
