# The environment of the image was set by UDI before this shell was started.
