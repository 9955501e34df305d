"""Examines a machine and a configuration, and says what to do about what it finds."""

from gateway.doctor.diagnosis import Diagnosis, Verdict, worst
from gateway.doctor.examination import examine

__all__ = ["Diagnosis", "Verdict", "examine", "worst"]
