"""Tests of the edge to libvirt."""
