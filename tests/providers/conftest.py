from tests.providers.asked_agent import agent

__all__ = ["agent"]
