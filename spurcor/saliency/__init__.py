"""Saliency maps, and masks derived from them."""
