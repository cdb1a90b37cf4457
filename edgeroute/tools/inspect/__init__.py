"""What a model file says of itself, and a card guessed from it."""
