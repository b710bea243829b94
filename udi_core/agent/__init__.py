"""The Python agent that runs inside an image, and its host side."""
