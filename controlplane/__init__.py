"""The control plane: instances, disks, recorded construction requests, replacements."""
