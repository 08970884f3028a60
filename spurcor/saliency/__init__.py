"""Where a network looks, and masks made of it."""
