"""PCI: bits, configuration space, BARs, topology."""
