"""An image file in, and back out as it was. No torch."""
