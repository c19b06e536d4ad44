"""What is promised, where requests run, and what a worker's next step computes."""
