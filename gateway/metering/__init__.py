"""What the way to the cloud may carry, where that costs money: budgets, windows, and the account of what passed."""
