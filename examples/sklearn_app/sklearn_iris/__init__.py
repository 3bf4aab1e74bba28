"""Irises with scikit-learn and Flower."""
