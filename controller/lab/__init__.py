"""A whole cluster on one machine, of real parts, for trying things out: broker, controller and hosts."""
