"""The commands of kvmctl, a module a subject: each adds its parsers and runs what they were given."""
