"""HTTP: routes, deadlines, limits, signals, logs and the page."""
