"""The scenarios, by name, in the order of a run."""

from bench.scenarios.base import Scenario
from bench.scenarios.everyday import EverydayScenario
from bench.scenarios.image import ImageScenario
from bench.scenarios.log import LogScenario
from bench.scenarios.million import MillionScenario
from bench.scenarios.removal import RemovalScenario
from bench.scenarios.sessions import SessionsScenario
from bench.scenarios.tree import TreeScenario

SCENARIOS: dict[str, type[Scenario]] = {
    scenario.name: scenario
    for scenario in (
        EverydayScenario,
        ImageScenario,  # which takes long and makes few files: what was removed before is forgotten then
        TreeScenario,
        LogScenario,
        MillionScenario,
        SessionsScenario,
        RemovalScenario,
    )
}
