"""What one training run is (`RunConfig`), the small JSON record that it ends in, and where that record comes from.

May use: data, method, models.
"""
