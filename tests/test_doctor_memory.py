"""doctor/memory.py: an estimate in sentences."""

from dataclasses import replace

from doctor.memory import describe_estimate
from memory.estimate import estimate
from tests.shapes import SETUP, model


def test_description_says_the_peak_and_its_parts():
    parameters, sizes = model("glm3", "lora")
    text = describe_estimate(estimate(parameters, sizes, SETUP), SETUP)
    assert (
        text.startswith("Peak tensor memory per GPU: ")
        and "weights 11.6" in text
        and "peak of each phase: forward" in text
    )
    text = describe_estimate(estimate(parameters, sizes, replace(SETUP, stage=3, offload_param=True)), SETUP)
    assert "Offloaded to RAM per rank: " in text and "GiB (weights" in text
