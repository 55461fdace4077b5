"""The paper: which weights share one structure parameter α, the thresholded factor that prunes, its regularization by
equation (6), and the five series that Figure 3 compares, as things done to a network. Nothing here trains.

May use: models.
"""
