"""The web console: the control plane's own services for a browser, and the pages that use them."""
