"""Edge to libvirt: the only package that imports it, and every call to it runs on one thread."""
