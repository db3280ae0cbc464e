"""Configurations of MQTT brokers: who may publish and read what, and the files that make a broker obey. Pure."""
