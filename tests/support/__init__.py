"""Real parts for the tests: brokers, origins, images, certificates, child processes."""
