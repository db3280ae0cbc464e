"""Settings, logs, service notification and units."""
