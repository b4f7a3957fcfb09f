"""The small classifier of ``support/small_classifier.py``."""

from __future__ import annotations

from small_classifier import classifier, images, net

__all__ = ["classifier", "images", "net"]
