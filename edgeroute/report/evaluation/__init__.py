"""What edge and cloud say of labelled inputs, what a threshold makes of it, and the page that shows it."""
