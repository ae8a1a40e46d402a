from tests.run_fixtures import comparing, folder, informed, run

__all__ = ["comparing", "folder", "informed", "run"]
