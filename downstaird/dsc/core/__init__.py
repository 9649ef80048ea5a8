"""What dsc decides: which members there are, and what to do with each when something happens."""
