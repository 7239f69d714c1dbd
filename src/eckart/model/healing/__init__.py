"""Healing: a few hundred steps of distillation of a compressed checkpoint from its original."""

from eckart.model.healing.course import Course
from eckart.model.healing.engine import Healed, heal
from eckart.model.healing.losses import Features, Logits, Match, Seen, Together
from eckart.model.healing.training import Trained, TrainFactors, Training, TrainLora

__all__ = [
    "Course",
    "Features",
    "Healed",
    "Logits",
    "Match",
    "Seen",
    "Together",
    "TrainFactors",
    "TrainLora",
    "Trained",
    "Training",
    "heal",
]
