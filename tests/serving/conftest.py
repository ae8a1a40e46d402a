from tests.run_fixtures import folder, run

__all__ = ["folder", "run"]
