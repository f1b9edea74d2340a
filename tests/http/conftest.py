import pytest
import uvloop


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(config, item):
    """The loop that serves in production."""
    return {"uvloop": uvloop.new_event_loop}
