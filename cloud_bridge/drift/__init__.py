"""How far inputs and answers are from what a release was trained on, and what follows from it."""
