"""`stairwell top`: a model fed by news, its views as rows of text, and the terminal around them."""
