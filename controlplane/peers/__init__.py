"""The daemons the control plane calls: gRPC out, domain errors back."""
