"""The core of UDI: pull, flatten, mount and enter images; knows nothing of any workflow engine."""
