"""A replacement as a picture: what its guest felt, how fast it was, which phase when."""
