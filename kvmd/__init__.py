"""The daemon on every KVM host: downloads images straight into primary storage and says how it went."""
