"""An image for each Parsl app."""
