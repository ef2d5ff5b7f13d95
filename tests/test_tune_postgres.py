"""A search whose trials are in a live PostgreSQL, shared by commands with folders of their own."""

import shutil
import tempfile
import threading
from pathlib import Path

import pytest
from chiasm.datasets import InputError
from chiasm.recipes.studies import Study

from .test_omop_postgres import Server


@pytest.fixture(scope="module")
def server():
    folder = Path(tempfile.mkdtemp(prefix="chiasm-pg-", dir="/tmp"))
    user = None
    if folder.owner() == "root":
        # PostgreSQL refuses to run as root.
        user = "postgres"
        shutil.chown(folder, user)
    own = Server(folder, user)
    try:
        own.start()
        yield own
    finally:
        own.stop()
        shutil.rmtree(folder)


def test_commands_share_the_trials_of_a_database_and_a_study_of_another_search_is_refused(server, tmp_path):
    def work(name: str, found: list[int]) -> None:
        workers = tmp_path / name
        with Study(server.url, name="shared", asked={"data": "these"}, maximize=True, workers=workers) as study:
            while (slot := study.free_slot(6)) is not None:
                found.append(slot)
                study.run(slot, lambda trial: trial.suggest_float("rate", 0, 1), seed=0, fixed={})

    # At once, and both on a database without tables.
    found: dict[str, list[int]] = {"one": [], "other": []}
    threads = [threading.Thread(target=work, args=item) for item in found.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with Study(server.url, name="shared", asked={"data": "these"}, maximize=True, workers=tmp_path) as study:
        assert sorted(study.standing) == list(range(6))
        assert study.is_done(6)
        assert len({trial.params["rate"] for trial in study.standing.values()}) == 6
    assert sorted({*found["one"], *found["other"]}) == list(range(6))
    with pytest.raises(InputError, match=r"The study shared in postgresql.* is a search with other data"):
        Study(server.url, name="shared", asked={"data": "others"}, maximize=True, workers=tmp_path)


def test_a_database_that_stops_is_told_and_its_trials_are_there_when_it_is_back(server, tmp_path):
    def study() -> Study:
        return Study(server.url, name="stopped", asked={}, maximize=True, workers=tmp_path)

    with study() as own:
        own.run(0, lambda trial: trial.suggest_float("rate", 0, 1), seed=0, fixed={})
        server.stop()
        with pytest.raises(InputError, match=r"went away or cannot be written .* Finished trials are kept"):
            own.run(1, lambda _: 1.0, seed=0, fixed={})
    with pytest.raises(InputError, match=r"The storage postgresql\+psycopg://chiasm@/postgres cannot be opened"):
        study()
    server.start()
    with study() as own:
        assert list(own.standing) == [0]
