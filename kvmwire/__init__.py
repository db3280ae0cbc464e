"""What travels over MQTT between controllers and hosts. Pure: no sockets, clock or disk."""

__version__ = "0.1.0"
