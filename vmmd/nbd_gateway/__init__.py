"""All disks of a host by name over NBD, on one TCP address with TLS."""
