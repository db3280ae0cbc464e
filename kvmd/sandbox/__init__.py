"""qemu-img, which reads bytes that nobody trusts, in a process that can do nothing else."""
