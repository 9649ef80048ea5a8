"""The upstairs on real connections and clocks."""
