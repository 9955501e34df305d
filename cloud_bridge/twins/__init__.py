"""What each gateway is to run, and what it says that it runs: the desired and the reported twin."""
