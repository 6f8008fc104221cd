"""Detections on pictures and videos; export."""

from .predictor import Predictor

__all__ = ["Predictor"]
