"""Numbers about results: distances between tile sets, scores, measured morphology."""
