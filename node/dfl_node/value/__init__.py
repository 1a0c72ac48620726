"""What a contribution was worth, and what share of the budget follows from it."""
