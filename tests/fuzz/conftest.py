"""The stack of the integration tests."""

from tests.integration.conftest import parts, stack, start_stack, unique

__all__ = ["parts", "stack", "start_stack", "unique"]
