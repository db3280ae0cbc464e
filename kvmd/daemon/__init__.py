"""The long-running part: events into the journal, the desired state made true, and everything announced."""
