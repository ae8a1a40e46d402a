from tests.run_fixtures import folder, informed, run

__all__ = ["folder", "informed", "run"]
